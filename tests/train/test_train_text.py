"""Cleaning, vocabulary and files of messages."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from numsim import train
from numsim.errors import NumsimError
from numsim.train.classifier import corpus, read_corpus


def test_cleaning_by_its_options():
    text = "The WIN-1,000$ prize!! It’s yours; don't wait... 50% off_now"
    assert train.clean(text) == ["the", "win", "$", "prize", "!", "!", "it's", "yours", "don't",
                                 "wait", "%", "off", "now"]  # fmt: skip
    assert train.clean(text, lower=False, marks="")[:3] == ["The", "WIN", "prize"]
    assert "1,000" in train.clean(text, numbers=True)
    assert "50" in train.clean(text, numbers=True)
    assert train.clean(text, stop_words=True, marks="") == [
        "win",
        "prize",
        "it's",
        "don't",
        "wait",
        "now",
    ]
    assert train.clean("The THE cat", lower=False, stop_words=["the"]) == ["cat"]
    assert train.clean("a]b^c-d\\e", marks="]^-\\") == [
        "a",
        "]",
        "b",
        "^",
        "c",
        "-",
        "d",
        "\\",
        "e",
    ]
    assert train.clean("") == []


@settings(max_examples=200, deadline=None)
@given(st.text(), st.booleans(), st.booleans(), st.booleans())
def test_a_cleaned_text_comes_back_unchanged(text, lower, numbers, stop):
    how = {"lower": lower, "numbers": numbers, "stop_words": stop}
    once = train.clean(text, **how)
    assert train.clean(" ".join(once), **how) == once


@pytest.mark.parametrize("lower", [True, False])
def test_stop_words_are_dropped_in_either_case(lower):
    assert train.clean("The WIN is the Thing", lower=lower, stop_words=["The", "win", "THING"]) == [
        "is"
    ]


def test_a_letter_that_is_two_in_lower_case():
    once = train.clean("İstanbul")
    assert train.clean(" ".join(once)) == once


def test_vocabulary_counts_and_orders_ties_by_the_alphabet():
    v = train.Vocabulary.build(["b a unk", ["c", "a"], "c unk unk"], 4)
    assert v.words == ("<pad>", "<unk>", "a", "c")
    np.testing.assert_array_equal(
        v.encode(["a b", "c c c c", ["x"]], 3), [[0, 2, 1], [3, 3, 3], [0, 0, 1]]
    )
    assert train.Vocabulary.build(["unk unk a"], 9, never=()).words[2:] == ("unk", "a")


GOOD = [(0, "hello there", "train"), (1, 'win "now", free', ""), (2, "a\nb", "test")]


def lines(rows=GOOD):
    return "\n".join(json.dumps({"label": a, "text": b, "split": c}) for a, b, c in rows)


def table(rows=GOOD):
    def cell(x):
        return '"' + str(x).replace('"', '""') + '"'

    return "label,text,split\r\n" + "".join(f"{a},{cell(b)},{c}\r\n" for a, b, c in rows)


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv", "m.jsonl.gz", "m.csv.gz"])
def test_files_of_messages(tmp_path, name):
    text = (table if ".csv" in name else lines)().encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert [tuple(m) for m in train.read_messages(tmp_path / name)] == GOOD
    (tmp_path / name).write_bytes(
        gzip.compress(b"\xef\xbb\xbf" + text) if name.endswith(".gz") else b"\xef\xbb\xbf" + text
    )
    assert [tuple(m) for m in train.read_messages(tmp_path / name)] == GOOD


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv"])
def test_labels_that_are_words_are_numbered_in_alphabetical_order(tmp_path, name):
    rows = [(" spam", "win", "train"), ("ham", "home", "train"), ("spam", "now", "test"),
            ("0day", "x", "train"), ("ham", "b", "test")]  # fmt: skip
    (tmp_path / name).write_text((table if ".csv" in name else lines)(rows))
    found = train.read_messages(tmp_path / name)
    assert [m.label for m in found] == ["spam", "ham", "spam", "0day", "ham"]
    read = read_corpus(tmp_path / name)
    assert read.names == ("0day", "ham", "spam")
    assert read.classes == 3
    assert read.labels.tolist() == [2, 1, 0]
    assert read.test_labels.tolist() == [2, 1]
    numbers = corpus(messages((1, "a"), (0, "b")), [])
    assert numbers.names == ("0", "1")
    assert numbers.labels.tolist() == [1, 0]


def test_a_text_without_a_word_is_quoted():
    good = messages((0, "a"), (1, "b"))
    for part, kind in ((0, "training"), (1, "unseen")):
        given = [list(good), list(good)]
        given[part].append(good[0]._replace(text="12 34"))
        with pytest.raises(NumsimError, match=f"the {kind} text 3, '12 34', has none"):
            corpus(*given)


@pytest.mark.parametrize("mark", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_only_line_ends_end_a_row(tmp_path, mark):
    for name, text in (
        ("m.csv", f"label,text\n0,a{mark}b\n"),
        ("m.jsonl", f'{{"label": 0, "text": "a{mark}b"}}\n'),
    ):
        if name == "m.jsonl" and mark < " ":
            text = json.dumps({"label": 0, "text": f"a{mark}b"})
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        (message,) = train.read_messages(tmp_path / name)
        assert message.text == f"a{mark}b"


BAD = {
    "m.jsonl": ["", "\n\n", "[1]", "{", '{"label": 0}', '{"label": -1, "text": "a"}',
                '{"label": true, "text": "a"}', '{"label": 1.0, "text": "a"}',
                '{"label": NaN, "text": "a"}', '{"label": "", "text": "a"}',
                '{"label": "-1", "text": "a"}', '{"label": "nan", "text": "a"}',
                '{"label": "sp\\nam", "text": "a"}', '{"label": null, "text": "a"}',
                '{"label": ["spam"], "text": "a"}',
                '{"label": 0, "text": " "}', '{"label": 0, "text": 5}',
                '{"label": 0, "text": "a", "split": 3}', "[" * 100000,
                '{"label": 1' + "0" * 5000 + ', "text": "a"}',
                '{"label": 4294967296, "text": "a"}'],
    "m.csv": ["", "a,b\n1,2\n", "label,text\n", "label,text\n0\n", "label,text\n-1,a\n",
              "label,text\n00000000000000000001,a\n", "label,text\n1.0,a\n", "label,text\n²,a\n",
              "label,text\n0," + "x" * 140000 + "\n", "label,text," + "x" * 140000 + "\n0,a,b\n"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, ts in BAD.items() for t in ts])
def test_bad_messages_are_one_sentence(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(NumsimError, match="read_messages") as caught:
        train.read_messages(tmp_path / name)
    assert len(str(caught.value)) < 600


def test_every_flipped_or_cut_byte_of_a_gzip_file(tmp_path):
    data = gzip.compress(lines([(0, f"text {i}", "") for i in range(40)]).encode(), mtime=0)
    file = tmp_path / "m.jsonl.gz"
    for at in range(len(data)):
        for broken in (data[:at], data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]):
            file.write_bytes(broken)
            try:
                train.read_messages(file)
            except NumsimError:
                continue
            assert at < 10  # flags and the time of the header do not change the text


def test_other_bad_files(tmp_path):
    (tmp_path / "latin.csv").write_bytes("label,text\n0,é\n".encode("latin-1"))
    for path in (tmp_path / "latin.csv", tmp_path, tmp_path / "none.csv", 5, None):
        with pytest.raises(NumsimError):
            train.read_messages(path)


@pytest.mark.parametrize("bad", [
    lambda: train.clean(5), lambda: train.clean(b"a"), lambda: train.clean("a", marks=3),
    lambda: train.clean("the", stop_words="the"), lambda: train.clean("a", stop_words=5),
    lambda: train.Vocabulary.build("abc", 5), lambda: train.Vocabulary.build(None, 5),
    lambda: train.Vocabulary.build([5], 5), lambda: train.Vocabulary.build([[5]], 5),
    lambda: train.clean("a", stop_words=np.array("a")),
    lambda: train.Vocabulary.build(np.array("a"), 5),
    lambda: train.Vocabulary.build(["a"], 5, never=None),
    lambda: train.Vocabulary.build(["a"], 5, never="a"),
    lambda: train.Vocabulary.build(["a"], 5, never=[["a"]]),
    lambda: train.Vocabulary.build(["a"], 2), lambda: train.Vocabulary.build(["unk"], 5),
    lambda: train.Vocabulary.build(["a"], 5).encode(["a"], 0),
    lambda: train.Vocabulary.build(["a"], 5).encode([""], 3),
    lambda: train.Vocabulary.build(["a"], 5).encode("a", 3),
    lambda: corpus(messages((0, "a b")), []), lambda: corpus(messages((0, "a"), (2, "b")), []),
    lambda: corpus(messages((0, "a"), (1, "?")), [], prepare=lambda t: train.clean(t, marks="")),
    lambda: corpus(messages((0, "a"), (1, "b")), messages((2, "c"))),
    lambda: corpus(messages(("ham", "a"), ("spam", "b")), messages(("eggs", "c"))),
    lambda: corpus(messages(("ham", "a"), (1, "b")), []),
    lambda: corpus(messages(("ham", "a")), []),
    lambda: corpus(messages(("ham", "a"), ("spam", "b")), messages((1, "c"))),
])  # fmt: skip
def test_bad_texts(bad):
    with pytest.raises(NumsimError):
        bad()


def messages(*rows):
    from numsim.train.text import Message

    return [Message(label, text) for label, text in rows]


def test_of_words_as_frequent_the_first_of_the_alphabet_come_first():
    v = train.Vocabulary.build(["d c b a", "z z"], 5)
    assert v.words == ("<pad>", "<unk>", "z", "a", "b")
