"""Every key of the product, built and parsed: a new kind of object is a row of the table here.

::

    <base><global_keyprefix>celery-task-meta-<id>                          a result
    <base><global_keyprefix>celery-taskset-meta-<id>                       a saved group
    <base><global_keyprefix>celery-files/<whose>/<random>                  a file; whose: a task, or `~sent`: no task's
    <base><global_keyprefix>celery-chords/<group id>/manifest              what a chord is
    <base><global_keyprefix>celery-chords/<group id>/<level>/<slot>        a part of it, or the summary of up to 32
    <base><global_keyprefix>celery-chords/<group id>/added/<id>            a part of a task that a member added
    <base><global_keyprefix>celery-chords/<group id>/claim                 who sends its body
    <base><global_keyprefix>celery-chords/<group id>/now/<random>          what asks for the server's time, deleted
    <base><global_keyprefix>celery-chords-repaired                         when chords were mended last
    <base>celery-messages/<digest>[.<random>]                              the arguments of a large message
    <base>celery-s3-probe                                                  what asks whether conditional writes work
    <base>celery-s3-doctor/<random>-<name>                                 what `celery s3 doctor` tries, and deletes
    <base>celery-s3-bench/<random>/<name>                                  what `celery s3 bench` tries, and deletes

The names of results and saved groups are those that celery-s3 1.0.1 and Celery's own ``s3`` backend use. An id goes
into its key as it is, unless a client or a server would change it on the way: then the characters in question are
percent-encoded, so that two ids never share a key and each key gives its id back. (The folder of a file gives a hash
where the task's id is no plain name.)
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import unquote

from kombu.utils.encoding import bytes_to_str

__all__ = [
    "BENCH",
    "CHORDS",
    "DOCTOR",
    "FILES",
    "GROUPS",
    "KINDS",
    "MAX_KEY_BYTES",
    "MENDED",
    "MESSAGES",
    "PROBE",
    "RESULTS",
    "Key",
    "Kind",
    "Layout",
    "Role",
    "chord_folder",
    "decode_id",
    "encode_id",
    "encode_segment",
    "file_folder",
    "full_key",
    "message_name",
]

#: S3's limit on a key, in bytes of UTF-8.
MAX_KEY_BYTES = 1024

# What does not survive: control characters and noncharacters (XML listings cannot hold them), the backslash
# (SeaweedFS makes it a slash), a slash before an empty or dot segment (object_store refuses those, urllib3
# folds them), and a percent sign that would be read back as one of our own escapes.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ufffe\uffff]|/(?=/|\Z|\.{1,2}(?:/|\Z))|%(?=[0-9A-Fa-f]{2})")
_ESCAPED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")


# -- ids and names


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode())


def encode_id(id: object) -> str:
    """The id as it stands in a key; :func:`decode_id` is the inverse.

    Arguments:
        id: text, which Celery may give as bytes, or whose ``str()`` is the id, as of a UUID.

    Raises:
        ValueError: the id is empty, or is no text that UTF-8 can hold.
    """
    if not id:
        raise ValueError(f"task_id must not be empty. Got {id} instead.")  # Celery's own words
    id = bytes_to_str(id) if isinstance(id, bytes) else str(id)
    try:
        id.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(f"id {id!r} cannot be an S3 key: it holds a lone surrogate. Use another id.") from exc
    return _UNSAFE.sub(_escape, id)


def encode_segment(id: str) -> str:
    """The id as one segment of a key, its slashes encoded too; :func:`decode_id` is the inverse.

    Raises:
        ValueError: as :func:`encode_id`.
    """
    return encode_id(id).replace("/", "%2F")


def decode_id(text: str) -> str:
    """The id that :func:`encode_id` encoded; a name that it cannot have made is returned as it is."""
    try:
        return _ESCAPED.sub(lambda match: unquote(match.group(), errors="strict"), text)
    except UnicodeDecodeError:
        return text


def full_key(base: str, name: str) -> str:
    """``base`` and ``name`` as one key.

    Raises:
        ValueError: the key is longer than S3 allows.
    """
    key = base + name
    length = len(key.encode())
    if length > MAX_KEY_BYTES:
        raise ValueError(
            f"the key for {name[:60]!r}… has {length} bytes, S3 allows {MAX_KEY_BYTES}: use a shorter id or base_path"
        )
    return key


_PLAIN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
#: Whose the files are that are arguments of calls from no task; no task's folder has this name.
_NO_TASK = "~sent"


def file_folder(owner: str | None) -> str:
    """Where the files of a task are, behind the prefix of all files; two ids never share one.

    Arguments:
        owner: the task's id; ``None``: the files are arguments of calls from no task.
    """
    if owner is None:
        return f"{_NO_TASK}/"
    plain = _PLAIN_ID.fullmatch(owner)
    return f"{owner if plain else '~' + hashlib.sha256(owner.encode(errors='surrogatepass')).hexdigest()}/"


def chord_folder(group: str) -> str:
    """Where the objects of a chord are, behind the prefix of all chords; two ids never share one.

    Raises:
        ValueError: as :func:`encode_id`.
    """
    return f"{encode_segment(group)}/"


def message_name(digest: str, random: str = "") -> str:
    """What a message points to, behind the prefix of messages; with a random part it is that message's alone."""
    return f"{digest}.{random}" if random else digest


# -- kinds

#: Who uses a bucket: ``worker`` runs tasks, ``client`` sends them and reads results, ``operator`` runs the commands but
#: ``init``, by which an ``administrator`` sets the bucket up: IAM cannot allow rules for a prefix alone.
Role = Literal["worker", "client", "operator", "administrator"]
#: What IAM may allow on objects.
Verbs = tuple[Literal["Get", "Put", "Delete"], ...]

_ALL: Verbs = ("Get", "Put", "Delete")
_KEPT: Verbs = ("Get", "Put")
_CLEARED: Verbs = ("Get", "Delete")
_WRITTEN: Verbs = ("Put", "Delete")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of objects.

    Attributes:
        name: as lifecycle rules and commands call it.
        start: what its keys begin with, behind the base and perhaps Celery's `global_keyprefix`.
        rest: what follows, with the groups ``id`` and ``rest`` of :class:`Key`; whatever else stands there is not ours.
            Nothing follows where there is one such object.
        prefixed: Celery's `global_keyprefix` stands before it.
        term: which of :class:`celery_s3.expiry.terms.Terms` has passed when all objects of this kind have expired;
            empty: they do not expire.
        large: written in parts where they are large; whose uploads each of these roles may abort.
        worker, client, operator, administrator: what each role does with these objects, and IAM must allow.
    """

    name: str
    start: str
    rest: re.Pattern[str] = re.compile("")
    prefixed: bool = True
    term: Literal["longest", "files", "results", "chords", "messages", ""] = ""
    large: tuple[Role, ...] = ()
    worker: Verbs = ()
    client: Verbs = ()
    operator: Verbs = ()
    administrator: Verbs = ()

    @property
    def single(self) -> bool:
        """Whether it is one object."""
        return not self.rest.pattern


_ANY = re.compile("(?P<id>.+)", re.DOTALL)
_SLOT = "(?:0|[1-9][0-9]{0,8})"
_OF_CHORD = re.compile(f"(?P<id>[^/]+)/(?P<rest>manifest|claim|{_SLOT}/{_SLOT}|added/[^/]+|now/[0-9a-f]{{32}})")
_FILE = re.compile("(?P<id>[A-Za-z0-9_~][A-Za-z0-9._-]{0,127})/(?P<rest>[0-9a-f]{32})")
_MESSAGE = re.compile(r"(?P<id>[0-9a-f]{64})(?:\.(?P<rest>[0-9a-f]{32}))?")
_SCRATCH = re.compile("(?P<id>[0-9a-f]{32})[-/](?P<rest>.+)")

# fmt: off
RESULTS = Kind("results", "celery-task-meta-", _ANY, term="longest", large=("worker", "operator", "administrator"),
               worker=_ALL, client=_CLEARED, operator=_ALL)
FILES = Kind("files", "celery-files/", _FILE, term="files", large=("worker", "client", "operator", "administrator"),
             worker=_ALL, client=_ALL, operator=_CLEARED)
GROUPS = Kind("groups", "celery-taskset-meta-", _ANY, term="results", worker=_ALL, client=_ALL, operator=_CLEARED)
CHORDS = Kind("chords", "celery-chords/", _OF_CHORD, term="chords", worker=_ALL, client=_KEPT, operator=_ALL)
MENDED = Kind("mended", "celery-chords-repaired", worker=_KEPT)
PROBE = Kind("probe", "celery-s3-probe", prefixed=False, worker=_KEPT, client=_KEPT, operator=_KEPT)
MESSAGES = Kind("messages", "celery-messages/", _MESSAGE, prefixed=False, term="messages",
                worker=_ALL, client=("Put",), operator=_CLEARED)
DOCTOR = Kind("doctor", "celery-s3-doctor/", _SCRATCH, prefixed=False, worker=_ALL, client=_ALL, operator=_ALL,
              administrator=_WRITTEN)
BENCH = Kind("bench", "celery-s3-bench/", _SCRATCH, prefixed=False, operator=_ALL)
# fmt: on

KINDS = (RESULTS, FILES, GROUPS, CHORDS, MENDED, PROBE, MESSAGES, DOCTOR, BENCH)


# -- keys


class Key(NamedTuple):
    """What a key says.

    Attributes:
        id: of a result, a saved group, a chord's group; of a file the folder, as :func:`file_folder` names it; of a
            message the digest; of `doctor` and `bench` the run.
        rest: what follows, empty where nothing does.
    """

    kind: Kind
    id: str = ""
    rest: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where everything of one deployment is.

    Arguments:
        base: before every key, as the settings have it.
        keyprefix: Celery's `global_keyprefix` with its separator, before the keys that Celery knows of, and chords.

    What builds keys of ids raises :class:`ValueError` where the id or the whole key can be none.
    """

    base: str = ""
    keyprefix: str = ""

    # -- what the keys of a kind begin with

    def prefix(self, kind: Kind) -> str:
        """What all keys of a kind begin with; of one that is a single object, its key."""
        return f"{self.base}{self.keyprefix if kind.prefixed else ''}{kind.start}"

    @property
    def results(self) -> str:
        """The prefix of results."""
        return self.prefix(RESULTS)

    @property
    def groups(self) -> str:
        """The prefix of saved groups."""
        return self.prefix(GROUPS)

    @property
    def files(self) -> str:
        """The prefix of files."""
        return self.prefix(FILES)

    @property
    def sent(self) -> str:
        """The prefix of the files that are arguments of calls from no task."""
        return self.files + file_folder(None)

    @property
    def chords(self) -> str:
        """The prefix of chords."""
        return self.prefix(CHORDS)

    @property
    def messages(self) -> str:
        """The prefix of what large messages point to."""
        return self.prefix(MESSAGES)

    @property
    def mended(self) -> str:
        """The key of the mark that workers leave when they have looked for chords to mend."""
        return self.prefix(MENDED)

    @property
    def probe(self) -> str:
        """The key that is written to when the server is asked for conditional writes."""
        return self.prefix(PROBE)

    # -- building

    def result_key(self, id: str) -> str:
        """The key of a task's result."""
        return full_key(self.base, f"{self.keyprefix}{RESULTS.start}{encode_id(id)}")

    def group_key(self, id: str) -> str:
        """The key of a saved group."""
        return full_key(self.base, f"{self.keyprefix}{GROUPS.start}{encode_id(id)}")

    def doctor_key(self, run: str, name: str) -> str:
        """The key of a scratch object of one run of `doctor`."""
        return full_key(self.base, f"{DOCTOR.start}{run}-{name}")

    def bench_key(self, run: str, name: str = "") -> str:
        """The key of a scratch object of one run of `bench`; without a name, the prefix of all of them."""
        return full_key(self.base, f"{BENCH.start}{run}/{name}")

    # -- parsing

    def parse(self, key: str) -> Key | None:
        """What a key says; ``None``: it is not one of ours."""
        for kind in KINDS:
            prefix = self.prefix(kind)
            found = kind.rest.fullmatch(key, len(prefix)) if key.startswith(prefix) else None
            if found is not None:
                parts = found.groupdict("")
                return Key(kind, decode_id(parts.get("id", "")), parts.get("rest", ""))
        return None
