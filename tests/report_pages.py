"""What a report's page holds, for the tests of several modules."""

import json
import re

import numpy as np

from stride_jax.self_influence import self_influence


def stored(html):
    """What stands in the page's script tags."""
    found = re.findall(r'<script type="application/json" id="data-([\w-]+)">(.*?)</script>', html,
                       re.DOTALL)  # fmt: skip
    return {name: json.loads(value) for name, value in found}


def check_a_report(run, told, attribution):
    """A page of a run of images against its attribution, and against one that is compared."""
    assert told["about"]["kind"] == "image"
    assert told["about"]["methods"] == ["stride", "other"]
    ids = [i for part in sorted(n for n in told if n.startswith("examples-"))
           for i in told[part]["id"]]  # fmt: skip
    for own in told["queries-0"]["own"][:5]:
        for lists, sign in ((own["lists"][0], 1), (own["lists"][1], -1)):
            helping = [(ids[i], sign * s) for i, s, _ in lists if s * sign > 0]
            hurting = [(ids[i], sign * s) for i, s, _ in lists if s * sign < 0]
            ordered = (helping, hurting[::-1]) if sign > 0 else (helping[::-1], hurting)
            for entries, named in zip(ordered, ("proponents", "opponents"), strict=True):
                expected = getattr(attribution, named)(own["id"], 4)
                assert [name for name, _ in entries] == [name for name, _ in expected]
                np.testing.assert_allclose(
                    [s for _, s in entries], [s for _, s in expected], rtol=1e-3
                )
        row = own["row"]
        assert (own["label"], own["right"]) == (
            int(run.query.labels[row]), own["guess"] == own["label"]
        )  # fmt: skip
    assert len(told["suspects"]) == 7
    table = self_influence(run.tapped, run.model.params, run.index, run.train).suspects(7)
    assert [ids[i] for i, *_ in told["suspects"]] == table["id"].tolist()
    assert [guess for *_, guess in told["suspects"]] == table["predicted"].tolist()
    assert told["query-sheet-0"].startswith("iVBOR"), "a PNG file"
