import pytest

from pirl.runs.progress_lines import filling_line, is_passing, live_text, progress_line

METRICS = {
    "step": 1500,
    "last_step": 12_000,
    "epoch": 12.5,
    "loss": 3.25,
    "loss_image": 3.5,
    "loss_pretext": 3.0,
    "lr": 0.0295,
    "samples_per_s": 1234.5,
    "data_wait_share": 0.021,
    "time_left_s": 3661.4,
}


def test_the_line_for_a_terminal_has_what_matters_most_in_80_columns():
    text = live_text(METRICS)
    assert text == "step 1,500/12,000  left 1:01:01  1,234 samples/s  loss 3.250  data wait 2%  epoch 12.50/100"
    assert text[: 80 - len("1:23  ")].endswith("data wait 2%")


@pytest.mark.parametrize(
    ("line", "passing"),
    [
        (progress_line(METRICS), True),
        (progress_line(METRICS | {"step": 1, "epoch": 1 / 120}), True),
        (progress_line(METRICS | {"step": 12_000, "epoch": 100.0}), False),  # the last one stays
        (filling_line(1, 1200), True),
        ("going on from checkpoint_000000010, with 2 workers", False),
        ("evaluating", False),
        ("no evaluation: the data set has no test split", False),
        ("", False),
    ],
)
def test_lines_that_the_next_one_replaces(line, passing):
    assert is_passing(line) == passing
