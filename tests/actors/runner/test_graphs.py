import pytest

from weft.actors.runner.forms import Form, Kind
from weft.actors.runner.graphs import Graphs, sizes


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [1]),
        (2, [1, 2]),
        (6, [1, 2, 4, 6]),
        (8, [1, 2, 4, 8]),
        (30, [1, 2, 4, 8, 16, 24, 30]),
        (300, [1, 2, 4, *range(8, 257, 8), 288, 300]),
    ],
)
def test_sizes_go_up_in_steps_to_the_most_rows(most, expected):
    assert sizes(most, Form.BASE) == sizes(most, Form.PLAIN) == expected


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [1]),
        (6, [1, 2, 4, 6]),
        (8, [1, 2, 4, 8]),
        (300, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]),
    ],
)
def test_sizes_of_sums_double(most, expected):
    assert sizes(most, Form.SUMS) == expected


def graphs_of(rows_max, *, recorded=None):
    """Graphs that say which they are; those of ``recorded`` sizes, or all."""
    graphs = Graphs(
        lambda batch: ("eager", batch), rows_max, lambda _, name: lambda b: (name, b), Form
    )
    for kind in graphs.kinds:
        if recorded is None or kind.rows in recorded:
            graphs.record(kind, kind)
    return graphs


def test_a_step_is_computed_by_the_least_graph_that_holds_it():
    graphs = graphs_of(24)
    for rows, expected in {1: 1, 3: 4, 5: 8, 8: 8, 9: 16, 24: 24}.items():
        for form in Form:
            kind = graphs.kind(rows, form)
            assert graphs.run(kind, "batch") == (Kind(expected, form), "batch")


def test_a_step_that_no_graph_holds_is_computed_eagerly():
    graphs = graphs_of(8, recorded=[4])
    assert graphs.kind(5, Form.PLAIN) is None
    assert graphs.kind(9, Form.SUMS) is None
    assert graphs.run(None, "batch") == ("eager", "batch")


def test_without_graphs_everything_is_computed_eagerly():
    graphs = Graphs(lambda batch: batch, 8, None, Form)
    assert graphs.kinds == []
    assert graphs.kind(1, Form.BASE) is None


def test_the_largest_graphs_are_made_first():
    """Their memory then serves the smaller ones."""
    rows = [kind.rows for kind in graphs_of(24).kinds]
    assert rows == sorted(rows, reverse=True)
    assert len(rows) == sum(len(sizes(24, form)) for form in Form)
