"""The picture of a training."""

import struct

import matplotlib.figure
import pytest

from madpo_trainer.curves import write_curves

ROWS = [
    {"step": 1, "loss": 0.7, "rewards/chosen": 0.1, "rewards/rejected": -0.1, "learning_rate": 1e-3},
    {"step": 2, "loss": 0.6, "rewards/chosen": 0.2, "rewards/rejected": -0.2, "learning_rate": 5e-4, "eval/loss": 0.5},
]


@pytest.fixture
def drawn(monkeypatch):
    """What was in the last figure, by the title of its axis: every line's label and points."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def keep(figure, path, **options):
        figures.append(figure)
        save(figure, path, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)

    def lines():
        return {
            axis.get_title(): {
                line.get_label(): list(zip(*(each.tolist() for each in line.get_data()), strict=True))
                for line in axis.lines
            }
            for axis in figures[-1].axes
            if axis.get_visible()
        }

    return lines


def test_a_figure_is_drawn_on_training_and_on_held_out_rows_from_before_the_first_step(tmp_path, drawn):
    write_curves(tmp_path / "curves.png", ROWS, initial_eval={"loss": 0.8})

    data = (tmp_path / "curves.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert min(struct.unpack(">II", data[16:24])) > 300
    assert drawn()["loss (nats)"] == {"training rows": [(1, 0.7), (2, 0.6)], "held-out rows": [(0, 0.8), (2, 0.5)]}
    assert set(drawn()["implicit reward (nats times beta)"]) == {"chosen, training rows", "rejected, training rows"}
    assert set(drawn()) == {"loss (nats)", "implicit reward (nats times beta)", "learning rate"}


def test_nothing_is_drawn_of_nothing(tmp_path):
    write_curves(tmp_path / "curves.png", [], initial_eval={})

    assert not list(tmp_path.iterdir())
