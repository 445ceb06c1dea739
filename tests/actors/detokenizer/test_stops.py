import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.actors.detokenizer.stops import StopScanner, StopString

WORDS = st.text(alphabet="ab\n", min_size=1, max_size=4)


def scanner(*stops, include_stop=False):
    return StopScanner([StopString(stop) for stop in stops], include_stop=include_stop)


def run(scanner, chunks):
    """Return all text that left, and whether it was stopped."""
    shown = ""
    for chunk in chunks:
        passed = scanner.feed(chunk)
        shown += passed.text
        if passed.is_stopped:
            return shown, True
    return shown + scanner.finish(), False


def first_stop(text, stops):
    """Return where the first complete stop string begins and ends: the longest of several."""
    for end in range(1, len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return end - max(lengths), end
    return None


@given(
    st.lists(WORDS, min_size=1, max_size=4), st.lists(st.text("ab\nc", max_size=5)), st.booleans()
)
@settings(max_examples=500, deadline=None)
def test_text_passes_up_to_the_first_stop_however_it_is_cut(stops, chunks, include_stop):
    text = "".join(chunks)
    found = first_stop(text, stops)
    shown, is_stopped = run(scanner(*stops, include_stop=include_stop), chunks)
    assert is_stopped == (found is not None)
    if found is None:
        assert shown == text
    else:
        assert shown == text[: found[1] if include_stop else found[0]]


@given(st.lists(WORDS, min_size=1, max_size=4), st.text("ab\nc", max_size=30))
@settings(max_examples=300, deadline=None)
def test_what_has_left_never_holds_a_stop_string(stops, text):
    shown, _ = run(scanner(*stops), text)
    assert not any(stop in shown for stop in stops)


@given(st.lists(WORDS, min_size=1, max_size=4), st.text("ab\nc", max_size=30))
@settings(max_examples=300, deadline=None)
def test_no_more_is_held_back_than_could_begin_a_stop(stops, text):
    scanned = scanner(*stops)
    seen = shown = ""
    for character in text:
        passed = scanned.feed(character)
        seen, shown = seen + character, shown + passed.text
        if passed.is_stopped:
            return
        held = seen[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize("stop", ["aab", "abab", "aaa", "abcabd"])
def test_a_stop_string_that_repeats_itself_is_found(stop):
    assert run(scanner(stop), "xa" + stop + "tail")[0] == ("xa" + stop)[: ("xa" + stop).find(stop)]


def test_without_stop_strings_everything_passes_at_once():
    assert scanner().feed("anything") == ("anything", False)
