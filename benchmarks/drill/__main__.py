"""Kill runs, fill their disk, damage their files, crowd their folder; see that nothing is lost.

    python -m benchmarks.drill                  kills, at random moments and at kinds of write
    python -m benchmarks.drill --faults         flipped bits, cut and swapped files
    python -m benchmarks.drill --full           a disk that is full from some write on
    python -m benchmarks.drill --crowd          several runs started at once in one folder

Figures go to `docs/results/disk.json`, and every trial to a file in the workdir.
"""

from benchmarks.drill import crowd, faults, full, kills
from benchmarks.program import Asked, Program
from stride_jax.cli.doors import at_least

_PARTS = {"faults": faults.main, "full": full.main, "crowd": crowd.main}


def main(asked: Asked) -> None:
    """The parts that are asked for; the kills without any."""
    chosen = [part for name, part in _PARTS.items() if getattr(asked.flags, name)]
    for part in chosen or [kills.main]:
        part(asked)


if __name__ == "__main__":
    program = Program("drill", __doc__, config="configs/mnist5k.py:runlocal", workdir="runs/drill")
    program.switch("faults", "Damage files of finished runs, of a classifier and of a text model.")
    program.switch("full", "Fill the disk before each kind of write; mounts a tmpfs, as root.")
    program.switch("crowd", "Start two and five runs at once.")
    program.flag("kills", "Kills at random moments.", type=at_least(0), default=30)
    program.flag("writes", "Kinds of write to strike at.", type=at_least(2), default=40)
    program.flag("flips", "Flipped bits.", type=at_least(1), default=240)
    program.flag("cuts", "Files cut short.", type=at_least(1), default=60)
    program.flag("seed", "Of moments, signals, processes and faults.", type=int, default=0)
    program.run(main)
