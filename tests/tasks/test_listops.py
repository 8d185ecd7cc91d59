"""Facts about ListOps."""

from __future__ import annotations

import gzip
import statistics
from dataclasses import replace
from itertools import islice

import pytest

from polewise.tasks import ListOpsTask
from polewise.tasks.data_sets import DATA_SETS, find, locate
from polewise.tasks.listops import TOKENS, evaluate_expression, read_expressions, tokenize

SMALL = ListOpsTask(
    min_length=5, max_length=40, max_depth=4, max_arguments=4, num_eval=60, batch_size=50
)

FUNCTIONS = {
    "[MIN": min,
    "[MAX": max,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}


def parsed(tokens):
    """The tree of an expression's words and the words after it, by recursive descent."""
    head, rest = tokens[0], tokens[1:]
    if head not in FUNCTIONS:
        return int(head), rest
    children = []
    while rest[0] != "]":
        child, rest = parsed(rest)
        children.append(child)
    return (head, children), rest[1:]


def value_of(tree):
    return tree if isinstance(tree, int) else FUNCTIONS[tree[0]]([value_of(c) for c in tree[1]])


def depth_of(tree):
    return 1 if isinstance(tree, int) else 1 + max(depth_of(child) for child in tree[1])


def arguments_in(tree):
    if isinstance(tree, int):
        return []
    return [len(tree[1]), *(num for child in tree[1] for num in arguments_in(child))]


def rows_of(batch):
    for tokens, length, label in zip(
        batch["inputs"].tolist(), batch["lengths"].tolist(), batch["labels"].tolist(), strict=True
    ):
        assert not any(tokens[length:])
        yield [TOKENS[token] for token in tokens[:length]], label


def test_drawn_expressions_keep_the_rules_and_come_to_their_labels():
    several = [*SMALL.eval_batches(), *islice(SMALL.train_batches(0), 5)]
    depths, arguments = set(), set()
    for words, label in (row for batch in several for row in rows_of(batch)):
        assert 5 < len(words) < 40
        tree, rest = parsed(words)
        assert rest == []
        assert value_of(tree) == label
        depths.add(depth_of(tree))
        arguments.update(arguments_in(tree))
    assert max(depths) == 4
    assert arguments == {2, 3, 4}


def test_nodes_are_drawn_with_the_published_probabilities():
    task = ListOpsTask(  # lists of any length: the longest possible has 17 tokens
        min_length=1, max_length=20, max_depth=3, max_arguments=3, num_eval=1, batch_size=1
    )
    batches = islice(task.train_batches(0), 2000)
    lists = [parsed(words)[0] for batch in batches for words, _ in rows_of(batch)]
    children = [child for tree in lists for child in tree[1]]
    operators = [child for child in children if isinstance(child, tuple)]
    assert len(operators) / len(children) == pytest.approx(0.25, abs=0.025)
    shares = {name: sum(tree[0] == name for tree in lists) / len(lists) for name in FUNCTIONS}
    assert shares == pytest.approx(dict.fromkeys(FUNCTIONS, 0.25), abs=0.04)
    assert sum(len(tree[1]) == 2 for tree in lists) / len(lists) == pytest.approx(0.5, abs=0.05)
    digits = [child for child in children if isinstance(child, int)]
    assert statistics.mean(digits) == pytest.approx(4.5, abs=0.2)


def test_both_bounds_of_the_length_are_exclusive():
    task = ListOpsTask(min_length=4, max_length=6, max_depth=2, num_eval=100, batch_size=100)
    assert {len(words) for words, _ in rows_of(next(task.eval_batches()))} == {5}


def test_the_deepest_nodes_are_digits():
    task = ListOpsTask(min_length=0, max_length=5, max_depth=1, num_eval=2, batch_size=2)
    drawn = [words for batch in task.eval_batches() for words, _ in rows_of(batch)]
    assert all(len(words) == 1 and words[0] in "0123456789" for words in drawn)


def test_no_held_out_expression_is_trained_on_or_in_both_parts():
    task = ListOpsTask(
        min_length=0, max_length=6, max_depth=2, max_arguments=3, num_eval=300, batch_size=100
    )
    parts = [set(part) for part in task._held_out.values()]
    assert len(parts[0]) == len(parts[1]) == 300
    assert not parts[0] & parts[1]
    held_out = {
        " ".join(TOKENS[token] for token in each.tokens)
        for part in task._held_out.values()
        for each in part
    }
    trained = {
        " ".join(words)
        for batch in islice(task.train_batches(0), 20)
        for words, _ in rows_of(batch)
    }
    assert len(trained) > 500
    assert not trained & held_out


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7", 7),
        ("[MAX 4 [MIN 8 2 ] [SM 5 6 1 ] ]", 4),
        ("[MED 1 8 ]", 4),
        ("[MED 9 1 5 ]", 5),
        ("[MED 9 1 2 5 ]", 3),
        ("[SM 9 9 9 ]", 7),
        ("( ( ( [MIN 3 ) 2 ) ] )", 2),
    ],
)
def test_an_expression_comes_to_its_value(expression, value):
    assert evaluate_expression(tokenize(expression)) == value


@pytest.mark.parametrize("expression", ["", "1 2", "[MIN 1", "1 ]", "[MIN ]", "[MIN 1 ] ]"])
def test_half_an_expression_is_refused(expression):
    with pytest.raises(ValueError, match="expression must"):
        evaluate_expression(tokenize(expression))


def test_an_unknown_token_is_named():
    with pytest.raises(ValueError, match=r"expression must be of the tokens 0 1 .*; got '\[FIRST'"):
        tokenize("[FIRST 1 2 ]")


def test_the_published_test_set_comes_to_its_labels():
    if locate(DATA_SETS["d20s"].files[0]) is None:
        pytest.skip("ListOps' test set must lie in listops/test_d20s.tsv.gz of a data folder")
    expressions = read_expressions(find("d20s")[0])
    assert len(expressions) == 10_000
    assert all(evaluate_expression(each.tokens) == each.value for each in expressions)
    lengths = [len(each.tokens) for each in expressions]
    assert (min(lengths), max(lengths)) == (1, 939)
    task = ListOpsTask(source="d20s", part="test", batch_size=10_000)
    (batch,) = task.eval_batches()
    assert batch["lengths"].tolist() == lengths
    assert batch["labels"].tolist() == [each.value for each in expressions]


def write_arena(folder, **parts):
    """Files in the Long Range Arena's form, each of the expressions given, line ends included."""
    for part, expressions in parts.items():
        lines = ["Source\tTarget", *(f"{text}\t{value}" for text, value in expressions)]
        (folder / f"basic_{part}.tsv").write_bytes("".join(f"{x}\r\n" for x in lines).encode())
    return str(folder)


ARENA = {
    "train": [(f"( ( ( [SM {i} ) {i + 1} ) ] )", (2 * i + 1) % 10) for i in range(7)],
    "val": [("3", 3), ("[MIN 1 2 ]", 1)],
    "test": [("[MAX 1 2 ]", 2)],
}


def test_the_files_of_the_long_range_arena_are_read_in_epochs(tmp_path):
    source = write_arena(tmp_path, **ARENA)
    task = ListOpsTask(source=source, batch_size=5, min_length=0, max_length=10)
    (valid,) = task.eval_batches()
    assert valid["inputs"].tolist() == [[3, 0, 0, 0], [10, 1, 2, 14]]
    assert valid["lengths"].tolist() == [1, 4]
    assert valid["labels"].tolist() == [3, 1]
    (test,) = ListOpsTask(source=task.source, part="test").eval_batches()
    assert test["labels"].tolist() == [2]
    rows = [row for batch in islice(task.train_batches(0), 7) for row in rows_of(batch)]
    wanted = sorted((f"[SM {i} {i + 1} ]".split(), (2 * i + 1) % 10) for i in range(7))
    for epoch in range(5):
        assert sorted(rows[7 * epoch : 7 * epoch + 7]) == wanted
    assert ListOpsTask().fingerprint() is None
    before = task.fingerprint()
    write_arena(tmp_path, train=ARENA["train"][1:])
    assert ListOpsTask(source=task.source).fingerprint() != before


def test_a_single_file_is_the_test_part_and_the_rest_is_drawn_without_it(tmp_path):
    lists = [f"[{name} {i} {j} ]" for name in ("MIN", "MAX") for i in range(10) for j in range(10)]
    held_out = {text: evaluate_expression(tokenize(text)) for text in lists}
    path = tmp_path / "held_out.tsv"
    path.write_text("".join(f"{value}\t{text}\n" for text, value in held_out.items()))
    task = ListOpsTask(
        source=str(path), part="test", min_length=0, max_length=6, max_depth=2, max_arguments=2,
        num_eval=50, batch_size=100,
    )  # fmt: skip
    test = [row for batch in task.eval_batches() for row in rows_of(batch)]
    assert [(" ".join(words), label) for words, label in test] == list(held_out.items())
    valid = [row for batch in replace(task, part="valid").eval_batches() for row in rows_of(batch)]
    trained = [row for batch in islice(task.train_batches(0), 20) for row in rows_of(batch)]
    drawn = {" ".join(words) for words, _ in [*valid, *trained]}
    assert len(valid) == 50
    assert len(drawn) > 100
    assert not drawn & held_out.keys()
    before = task.fingerprint()
    path.write_text("3\t3\n")
    assert replace(task).fingerprint() != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"basic_train\.tsv has none"),
        (b"Source\tTarget\r\n", r"basic_train\.tsv has none"),
        (b"Source\tTarget\n[MIN 1 2 ]\t11\n", "line 2: the value must be a digit; got '11'"),
        (b"[MIN 1 2 ]\t1\n", "line 1: the value must be a digit; got '.MIN 1 2 ]'"),
        (b"Source\tTarget\n\n[MIN 1 2 ]\n", "line 3: it must have two columns with a tab between"),
        (b"Source\tTarget\n[MINI 1 2 ]\t1\n", "line 2: expression must be of the tokens"),
        (b"Source\tTarget\n\xff\t1\n", "source must hold expressions and their values"),
        (b"Source\tTarget\n" + b"1 " * 50 + b"\t1\n", "max_length must be more than the longest"),
    ],
)
def test_a_table_that_will_not_do_is_explained(content, message, tmp_path):
    source = write_arena(tmp_path, **ARENA)
    (tmp_path / "basic_train.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ListOpsTask(source=source, min_length=0, max_length=10).prepare()


def test_absent_or_broken_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file /.*nowhere\."):
        ListOpsTask(source=str(tmp_path / "nowhere")).prepare()
    (tmp_path / "cut.tsv.gz").write_bytes(gzip.compress(b"1\t1\n" * 1000)[:-10])
    with pytest.raises(ValueError, match=r"cut\.tsv\.gz, line \d+: Compressed file ended before"):
        read_expressions(tmp_path / "cut.tsv.gz")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 501}, "max_length must be an integer of at least 502; got 501"),
        ({"max_arguments": 1}, "max_arguments must be an integer of at least 2; got 1"),
        ({"max_depth": 0}, "max_depth must be an integer of at least 1; got 0"),
        ({"source": 3}, "source must be of type"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        ListOpsTask(**options)


def test_expressions_of_which_all_are_held_out_are_refused_before_training():
    with pytest.raises(ValueError, match="min_length"):
        ListOpsTask(min_length=0, max_length=2, num_eval=5, batch_size=2).prepare()


def test_bounds_that_nothing_meets_are_explained():
    task = ListOpsTask(min_length=0, max_length=3, max_depth=5, num_eval=6)
    with pytest.raises(ValueError, match=r"different expressions as num_eval .* after 10 of 12"):
        task.prepare()
