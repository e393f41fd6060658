"""Messages that protobuf's own parser refuses are refused; the values of others are right."""

import pytest

from bitzoo.converters.formats.protobuf_wire import Message


def message(text):
    return Message(memoryview(bytes.fromhex(text)))


def test_numbers_texts_and_messages():
    found = message("08 96 01  12 03 61 62 63  1a 02 08 05")
    assert (found.number(1), found.text(2), found.message(3).number(1)) == (150, "abc", 5)
    assert (found.number(4), found.text(5), found.has(3)) == (0, "", True)
    assert message("08 ff ff ff ff ff ff ff ff ff 01").number(1) == -1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("00 00", "a field of number 0"),
        ("80 80 80 80 10 00", "a field of number 536870912"),
        ("08", "ends within a number"),
        ("12 05 61", "5 bytes were expected where 1 are left"),
        ("0b", "of the unknown kind 3"),
        ("08 ff ff ff ff ff ff ff ff ff ff 01", "too many bytes"),
        ("08 ff ff ff ff ff ff ff ff ff 7f", "more than 64 bits"),
    ],
)
def test_what_is_no_message(text, words):
    with pytest.raises(ValueError, match=words):
        message(text)
