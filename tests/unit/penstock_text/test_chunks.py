"""What the cache of tokenized pieces remembers, forgets and refuses."""

from penstock_text.chunks import PieceCache, can_be_cut

LINE = "a line of words\n"


class Counting:
    """Encodes characters; knows how many it was given."""

    def __init__(self) -> None:
        self.chars = 0

    def __call__(self, text: str) -> list[int]:
        """Code points."""
        self.chars += len(text)
        return [ord(char) for char in text]


def test_a_known_beginning_is_not_tokenized_again() -> None:
    encode = Counting()
    cache = PieceCache(encode, 1_000_000)
    document = LINE * 1000
    cache.encode(document + "first question")
    before = encode.chars

    ids = cache.encode(document + "another question, and a longer one")

    assert ids == [ord(char) for char in document + "another question, and a longer one"]
    assert encode.chars - before < 3000


def test_what_is_remembered_is_bounded() -> None:
    encode = Counting()
    cache = PieceCache(encode, 10_000)
    for number in range(50):
        cache.encode(f"{number}\n" * 1000)

    assert cache._chars <= 10_000


def test_a_text_without_lines_is_one_piece() -> None:
    encode = Counting()
    assert len(PieceCache(encode, 100_000).encode("x" * 50_000)) == 50_000


def test_tokenizers_that_look_across_lines_are_not_cut() -> None:
    def joins(text: str) -> list[int]:
        return [ord(char) for char in text.replace("\n", "")] + [len(text)]

    assert can_be_cut({}, Counting())
    assert not can_be_cut({}, joins)
    assert not can_be_cut({"normalizer": {"type": "Lowercase"}}, Counting())
    assert not can_be_cut({"added_tokens": [{"content": "<s>", "rstrip": True}]}, Counting())
