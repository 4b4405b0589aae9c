"""S1's arithmetic; the stack itself is run by `make bench ONLY=S1`."""

from startup import PARTS, lines


def test_parts_end_where_the_next_one_begins() -> None:
    marks = [("queued", 1.0), ("preparing", 2.0), ("class images", 8.0), ("training", 20.0), ("first step", 21.5)]
    said = lines("S1 cold", marks)
    assert said[0] == "S1 cold 21.5 s from submit to first step, 6.0 s of it in what could be kept warm"
    assert [line.split()[0] for line in said[1:]] == ["1.0", "1.0", "6.0", "12.0", "1.5"]
    assert said[3].endswith(PARTS["preparing"])
