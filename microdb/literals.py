"""The files of microdb 0.1.3: a list as Python's `repr` writes it.

Pure: from bytes to values, never from values to bytes. It reads what `repr` writes for the values that 0.1.3 could
hold, and what a person adds to that: white space, comments, a last comma. It is no parser of Python.

Not `ast.literal_eval`: on a whole file of 5 MB that takes up to 2.3 GiB, and on one hostile element as much; deep
nesting and runs of signs overflow its parser; it can read neither nan nor `complex(0, -4)` as they were. Here time and
memory are linear in the file, the depth is bounded, and nothing is evaluated.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from microdb.errors import CorruptError
from microdb.values import DEPTH_MAX

__all__ = ["elements"]

INT_DIGITS_MAX: Final = 100_000
"""The longest int. Converting one costs time that grows as the square of its digits."""

DIGITS_AT_ONCE: Final = 600
"""Python refuses to convert more digits than a limit, which a program may lower to 640."""

TOKEN: Final = re.compile(
    rb"""
    \s*+ (?: \#[^\n]*+ \s*+ )*+
    (?:
        (?P<text>    TEXT )
      | (?P<mark>    [,:\]})] )
      | (?P<int>     -?\d++ ) ENDED
      | (?P<float>   -?NUMBER ) ENDED
      | (?P<complex> -?NUMBERj | \( -?NUMBER [+-] NUMBERj \) ) ENDED
      | (?P<bytes>   b(?:TEXT) )
      | (?P<open>    [\[{(] | frozenset\(\{ )
      | (?P<word>    \.\.\. | [A-Za-z_]\w*+(?:\(\))? )
      | (?P<end>     \Z )
      | (?P<wrong>   . )
    )
    """.replace(b"TEXT", rb"""'[^'\\\n]*+(?:\\.[^'\\\n]*+)*+' | "[^"\\\n]*+(?:\\.[^"\\\n]*+)*+\"""")
    .replace(b"NUMBER", rb"(?:\d++(?:\.\d++)?(?:e[+-]?\d++)?|nan|inf)")
    .replace(b"ENDED", rb"(?![\w.'\"])"),
    re.VERBOSE | re.DOTALL,
)
"""One token and the space before it. Some group matches at every byte, so that a scan never skips any.

The quantifiers are possessive: the pattern never goes back, and a string costs no memory while it is matched.
"""

TEXT_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
BYTES_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)

ESCAPES: Final[Mapping[str, str]] = MappingProxyType(
    {"\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
)

WORDS: Final[Mapping[bytes, Callable[[], Any]]] = MappingProxyType(
    {
        b"None": lambda: None,
        b"True": lambda: True,
        b"False": lambda: False,
        b"Ellipsis": lambda: ...,
        b"...": lambda: ...,
        b"set()": set,
        b"frozenset()": frozenset,
    }
)


def elements(data: bytes, path: str, *, start: int = 0) -> Iterator[tuple[int, Any]]:
    """The byte offset and the value of each element of the list that `data` is, in order, from `start` on.

    Raises:
        CorruptError: On the first byte that does not fit, and nothing else on any input. What came before it was given.
    """
    return _Reader(data, path, start).elements()


class _Reader:
    """A descent through the tokens, one look ahead, one level of Python calls for each level of brackets."""

    __slots__ = ("comma", "names", "path", "tokens")

    def __init__(self, data: bytes, path: str, start: int) -> None:
        self.path = path
        self.tokens = TOKEN.finditer(data, start)
        self.names: dict[bytes, str] = {}
        """The dict keys so far by their text: equal names are one object, and are converted once."""
        self.comma = False
        """Whether a comma stood before the bracket that closed last."""

    def elements(self) -> Iterator[tuple[int, Any]]:
        """The byte offset and the value of each element of the list."""
        token = next(self.tokens)
        if token["open"] != b"[":
            raise self._unexpected(token, "the [ of a list")
        for first in self._firsts(b"]"):
            yield _offset(first), self._value(first, DEPTH_MAX + 1)
        token = next(self.tokens)
        if token.lastgroup != "end":
            raise self._unexpected(token, "the end of the file")

    def _firsts(self, closer: bytes) -> Iterator[re.Match[bytes]]:
        """The first token of each item up to the closing bracket; whoever iterates takes the rest of the item."""
        comma = False
        token = next(self.tokens)
        while token["mark"] != closer:
            yield token
            token = next(self.tokens)
            comma = token["mark"] == b","
            if comma:
                token = next(self.tokens)
            elif token["mark"] != closer:
                raise self._unexpected(token, f", or {closer.decode()}")
        self.comma = comma

    def _value(self, token: re.Match[bytes], depth: int) -> Any:
        """The value that begins with this token; `depth` is how many levels may begin here."""
        kind = token.lastgroup or ""
        if kind == "open":
            return self._container(token, depth)
        read = READ.get(kind)
        if read is None:
            raise self._unexpected(token, "a value")
        try:
            return read(token[kind])
        except UnicodeDecodeError as error:
            content = token.end() - 1 - len(error.object)
            raise self._corrupt(content + error.start, f"this is not {error.encoding.upper()}") from error
        except (ValueError, OverflowError) as error:
            raise self._corrupt(_offset(token), f"{token[kind][:60]!r} is no value: {error}") from error

    def _container(self, token: re.Match[bytes], depth: int) -> Any:
        if depth == 0:
            raise self._corrupt(_offset(token), f"nested more than {DEPTH_MAX} deep")
        mark = token["open"]
        if mark == b"[":
            return [self._value(first, depth - 1) for first in self._firsts(b"]")]
        if mark == b"(":
            return self._tuple(depth - 1)
        if mark == b"{":
            return self._dict_or_set(depth - 1)
        members = frozenset(self._hashable(first, depth - 1) for first in self._firsts(b"}"))
        self._expect(b")")
        return members

    def _tuple(self, depth: int) -> Any:
        items = [self._value(first, depth) for first in self._firsts(b")")]
        return items[0] if len(items) == 1 and not self.comma else tuple(items)

    def _dict_or_set(self, depth: int) -> dict[Any, Any] | set[Any]:
        token = next(self.tokens)
        if token["mark"] == b"}":
            return {}
        first = self._key(token, depth)
        token = next(self.tokens)
        if token["mark"] == b":":
            return self._dict(first, depth)
        if token["mark"] == b",":
            return {first, *(self._hashable(member, depth) for member in self._firsts(b"}"))}
        if token["mark"] == b"}":
            return {first}
        raise self._unexpected(token, ": or , or }")

    def _dict(self, key: Any, depth: int) -> dict[Any, Any]:
        """A dict from its first colon on."""
        found = {key: self._value(next(self.tokens), depth)}
        token = next(self.tokens)
        while token["mark"] == b",":
            token = next(self.tokens)
            if token["mark"] == b"}":
                return found
            key = self._key(token, depth)
            self._expect(b":")
            found[key] = self._value(next(self.tokens), depth)
            token = next(self.tokens)
        if token["mark"] != b"}":
            raise self._unexpected(token, ", or }")
        return found

    def _key(self, token: re.Match[bytes], depth: int) -> Any:
        raw = token["text"]
        if raw is None:
            return self._hashable(token, depth)
        if raw not in self.names:
            self.names[raw] = self._name(token, depth)
        return self.names[raw]

    def _name(self, token: re.Match[bytes], depth: int) -> str:
        """The name, unless it is JSON's notation of a type.

        `repr` writes double quotes only around an apostrophe. So this is JSON with a mistake elsewhere, say a comma too
        many, and what `json_values` makes of the name is something else.
        """
        name: str = self._value(token, depth)
        if name.startswith("$") and "'" not in name and token["text"].startswith(b'"'):
            raise self._corrupt(_offset(token), f"the name {name!r:.60} in double quotes has a meaning in JSON alone")
        return name

    def _hashable(self, token: re.Match[bytes], depth: int) -> Any:
        value = self._value(token, depth)
        try:
            hash(value)
        except TypeError as error:
            raise self._corrupt(_offset(token), f"this cannot be a key or a member of a set: {error}") from error
        return value

    def _expect(self, mark: bytes) -> None:
        token = next(self.tokens)
        if token["mark"] != mark:
            raise self._unexpected(token, mark.decode())

    def _unexpected(self, token: re.Match[bytes], expected: str) -> CorruptError:
        found = "the end of the file" if token.lastgroup == "end" else ascii(token[token.lastgroup or 0][:60])[1:]
        return self._corrupt(_offset(token), f"expected {expected}, found {found}")

    def _corrupt(self, offset: int, reason: str) -> CorruptError:
        return CorruptError(self.path, reason, offset=offset)


def _offset(token: re.Match[bytes]) -> int:
    return token.start(token.lastgroup or 0)


def _text(raw: bytes) -> str:
    text = raw[1:-1].decode()
    return TEXT_ESCAPE.sub(_escaped, text) if "\\" in text else text


def _bytes(raw: bytes) -> bytes:
    text = raw[2:-1].decode("ascii")
    return BYTES_ESCAPE.sub(_escaped, text).encode("latin-1")


def _escaped(match: re.Match[str]) -> str:
    code = match[1]
    if len(code) > 1:
        return chr(int(code[1:], 16))
    if code not in ESCAPES:
        raise ValueError(f"it has the unknown escape {match[0]!a}")
    return ESCAPES[code]


def _int(raw: bytes) -> int:
    if len(raw) <= DIGITS_AT_ONCE:
        return int(raw)
    if len(raw) > INT_DIGITS_MAX:
        raise ValueError(f"an int of more than {INT_DIGITS_MAX} digits")
    if raw.startswith(b"-"):
        return -_int(raw[1:])
    value = 0
    for start in range(0, len(raw), DIGITS_AT_ONCE):
        digits = raw[start : start + DIGITS_AT_ONCE]
        value = value * 10 ** len(digits) + int(digits)
    return value


def _complex(raw: bytes) -> complex:
    # As `repr` wrote it: in Python source, -4j is the negative of 4j, whose real part is -0.0.
    return complex(raw.decode("ascii"))


def _word(raw: bytes) -> Any:
    if raw not in WORDS:
        raise ValueError("no such name")
    return WORDS[raw]()


READ: Final[Mapping[str, Callable[[bytes], Any]]] = MappingProxyType(
    {"text": _text, "bytes": _bytes, "int": _int, "float": float, "complex": _complex, "word": _word}
)
