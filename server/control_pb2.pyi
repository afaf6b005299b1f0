from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("site", "public_key", "replace")
    SITE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    site: str
    public_key: bytes
    replace: bool
    def __init__(self, site: _Optional[str] = ..., public_key: _Optional[bytes] = ..., replace: _Optional[bool] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("fingerprint", "was_enrolled")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    WAS_ENROLLED_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    was_enrolled: bool
    def __init__(self, fingerprint: _Optional[str] = ..., was_enrolled: _Optional[bool] = ...) -> None: ...

class LaunchRequest(_message.Message):
    __slots__ = ("study",)
    STUDY_FIELD_NUMBER: _ClassVar[int]
    study: bytes
    def __init__(self, study: _Optional[bytes] = ...) -> None: ...

class LaunchReply(_message.Message):
    __slots__ = ("run", "was_running")
    RUN_FIELD_NUMBER: _ClassVar[int]
    WAS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    run: str
    was_running: bool
    def __init__(self, run: _Optional[str] = ..., was_running: _Optional[bool] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class RunReply(_message.Message):
    __slots__ = ("run", "study", "digest", "state", "round", "rounds", "sites", "headline", "exit_code", "updated_at", "pid")
    class SitesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    STUDY_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    HEADLINE_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    run: str
    study: str
    digest: str
    state: str
    round: int
    rounds: int
    sites: _containers.ScalarMap[str, str]
    headline: str
    exit_code: int
    updated_at: float
    pid: int
    def __init__(self, run: _Optional[str] = ..., study: _Optional[str] = ..., digest: _Optional[str] = ..., state: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., sites: _Optional[_Mapping[str, str]] = ..., headline: _Optional[str] = ..., exit_code: _Optional[int] = ..., updated_at: _Optional[float] = ..., pid: _Optional[int] = ...) -> None: ...
