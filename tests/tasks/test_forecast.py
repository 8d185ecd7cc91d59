"""Facts about forecasting."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from polewise.tasks import ForecastTask
from polewise.tasks.data_sets import DATA_SETS, locate

TABLE = np.random.default_rng(0).normal([1, 50, -7], [2, 30, 0.1], size=(100, 3)).round(4)


def write(path, table=TABLE):
    lines = ["date,load,heat,oil"]
    lines += [f"day {number}," + ",".join(map(str, row)) for number, row in enumerate(table)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "table.csv")


def scaled():
    return (TABLE - TABLE[:60].mean(0)) / TABLE[:60].std(0)


@pytest.mark.parametrize(("part", "first", "last"), [("valid", 60, 80), ("test", 80, 100)])
@pytest.mark.parametrize("univariate", [False, True])
def test_every_window_of_a_part_is_evaluated_and_may_read_the_part_before(
    part, first, last, univariate, source
):
    task = ForecastTask(
        source=source, part=part, length=10, horizon=4, batch_size=5, univariate=univariate
    )
    table = scaled()[:, -1:] if univariate else scaled()
    wanted = [(table[i - 10 : i], table[i : i + 4]) for i in range(first, last - 4 + 1)]
    batches = list(task.eval_batches())
    assert [len(batch["inputs"]) for batch in batches] == [5, 5, 5, 2]
    read = torch.cat([batch["inputs"] for batch in batches])
    to_predict = torch.cat([batch["labels"] for batch in batches])
    np.testing.assert_allclose(read, np.stack([pair[0] for pair in wanted]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(to_predict, [pair[1] for pair in wanted], rtol=1e-4, atol=1e-5)
    assert task.spec.num_features == table.shape[1]


def test_training_never_sees_what_is_held_out_and_sees_the_rest(source):
    task = ForecastTask(source=source, length=10, horizon=4, batch_size=2000, univariate=True)
    batch = next(task.train_batches(0))
    windows = torch.cat([batch["inputs"], batch["labels"]], 1)[..., 0].numpy()
    allowed = np.stack([scaled()[i : i + 14, -1] for i in range(60 - 14 + 1)]).astype(np.float32)
    assert {row.tobytes() for row in windows} == {row.tobytes() for row in allowed}


def test_differences_from_the_last_row_leave_the_errors_as_they_are(source):
    options = {"source": source, "length": 10, "horizon": 4}
    plain, relative = ForecastTask(**options), ForecastTask(**options, subtract_last=True)
    for one, other in zip(plain.eval_batches(), relative.eval_batches(), strict=True):
        last = one["inputs"][:, -1:]
        torch.testing.assert_close(other["inputs"] + last, one["inputs"])
        assert not other["inputs"][:, -1].any()
        forecast = torch.randn(one["labels"].shape)
        for name, (total, count) in plain.metrics(forecast, one).items():
            assert relative.metrics(forecast - last, other)[name] == (pytest.approx(total), count)


def test_errors_are_means_over_windows_rows_and_columns(source):
    task = ForecastTask(source=source, length=10, horizon=4, batch_size=7)
    errors, sums = [], {"mse": [0.0, 0], "mae": [0.0, 0]}
    for batch in task.eval_batches():
        forecast = torch.randn(batch["labels"].shape)
        errors += (forecast - batch["labels"]).flatten().tolist()
        assert float(task.loss(forecast, batch)) == pytest.approx(
            np.mean(np.square(errors[-forecast.numel() :])), rel=1e-5
        )
        for name, (total, count) in task.metrics(forecast, batch).items():
            sums[name] = [sums[name][0] + float(total), sums[name][1] + count]
    assert sums["mse"][0] / sums["mse"][1] == pytest.approx(np.mean(np.square(errors)), rel=1e-5)
    assert sums["mae"][0] / sums["mae"][1] == pytest.approx(np.mean(np.abs(errors)), rel=1e-5)


def test_a_stride_takes_every_so_many_windows(source):
    every = next(ForecastTask(source=source, length=10, horizon=4).eval_batches())
    (third,) = ForecastTask(source=source, length=10, horizon=4, eval_stride=3).eval_batches()
    assert torch.equal(third["labels"], every["labels"][::3])


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "table.csv")
    with pytest.raises(ValueError, match="it is a folder, a pipe or a device"):
        ForecastTask(source=str(tmp_path / "table.csv"), length=8, horizon=4).prepare()


def test_a_column_that_never_changes_is_left_at_zero(tmp_path):
    table = TABLE.copy()
    table[:, 1] = 3.0
    task = ForecastTask(source=write(tmp_path / "t.csv", table), length=10, horizon=4)
    assert not next(task.train_batches(0))["inputs"][..., 1].any()


@pytest.mark.parametrize("large", ["1e300", "1.5e308"])
def test_numbers_that_cannot_be_scaled_are_refused(large, tmp_path):
    path = tmp_path / "large.csv"
    rows = (f"day {n},{large if n % 2 else '-' + large}\n" for n in range(60))
    path.write_text("date,value\n" + "".join(rows))
    with pytest.raises(ValueError, match="source must hold numbers that fit into float32"):
        ForecastTask(source=str(path), length=8, horizon=4).prepare()


def test_other_numbers_have_another_fingerprint(source, tmp_path):
    table = TABLE.copy()
    table[99, 0] += 1e-4
    other = write(tmp_path / "other.csv", table)
    assert ForecastTask(source=source).fingerprint() != ForecastTask(source=other).fingerprint()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "source must have rows and columns of numbers"),
        ("date,oil\n", "source must have rows and columns of numbers"),
        ("date\nmonday\n", "source must have rows and columns of numbers"),
        ("date,oil\nmonday,1\ntuesday\n", "line 3: it has 1 columns and the first line 2"),
        ("date,oil\n\nmonday,1,2\n", "line 3: it has 3 columns and the first line 2"),
        ("date;oil\nmonday;1\n", "numbers, separated by commas; .* has none"),
        ("date,oil\nmonday,\n", "line 2: could not convert string to float: ''"),
        ("date,oil\nmonday,nan\n", "line 2: a number is not finite"),
        ("date,oil\n" + "day,1\n" * 300, "length and horizon must fit into the 180 rows to train"),
        ("date,oil\n" + "day,1\n" * 450, "horizon must be at most the 90 rows to evaluate; got 96"),
    ],
)
def test_a_table_that_will_not_do_is_explained(text, message, tmp_path):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        ForecastTask(source=str(tmp_path / "table.csv"), length=100).prepare()


def test_a_source_that_is_no_table_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("POLEWISE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"place it at .*ett/ETTh1\.csv .*data --fetch etth1"):
        ForecastTask().prepare()
    with pytest.raises(ValueError, match=r"there is no file eth1 in /.*\. Did you mean 'etth1'"):
        ForecastTask(source="eth1").prepare()
    with pytest.raises(ValueError, match="source must be a readable"):
        ForecastTask(source=str(tmp_path)).prepare()
    (tmp_path / "ett").mkdir()
    write(tmp_path / "ett/ETTh1.csv")
    with pytest.raises(ValueError, match=r"it has 100 rows of the 14,400 that are used, with 3"):
        ForecastTask().prepare()


@pytest.mark.parametrize(
    ("horizon", "last", "day"),
    [(96, (1.294, 0.713), (0.512, 0.433)), (720, (1.335, 0.755), (0.655, 0.514))],
)
def test_naive_forecasts_of_etth1_have_the_errors_that_others_measured(horizon, last, day):
    if locate(DATA_SETS["etth1"].files[0]) is None:
        pytest.skip("ETTh1 is not on disk; `polewise data` says where it belongs")
    task = ForecastTask(horizon=horizon, length=24, part="test", batch_size=256)
    for wanted, steps in ((last, 1), (day, 24)):
        sums = np.zeros((2, 2))
        for batch in task.eval_batches():
            repeats = -(-horizon // steps)
            forecast = batch["inputs"][:, -steps:].repeat(1, repeats, 1)[:, :horizon]
            metrics = task.metrics(forecast, batch)
            sums += [[float(total), count] for total, count in metrics.values()]
        np.testing.assert_allclose(sums[:, 0] / sums[:, 1], wanted, atol=6e-4)
