"""Sorts errors of object stores into an object's own and the environment's; obstore tells most as text."""

from __future__ import annotations

import re
from dataclasses import dataclass

from obstore import exceptions

from cnnbatch.errors import EnvironmentFault, UserError
from cnnbatch.storage.address import redact
from cnnbatch.storage.contract import AlreadyExists, Changed, Forbidden, NoSuchPlace, NotFound, Unreadable

_AWS = (
    "InvalidAccessKeyId SignatureDoesNotMatch ExpiredToken InvalidToken TokenRefreshRequired InvalidSecurity"
    " RequestExpired RequestTimeTooSkewed AccountProblem NotSignedUp AuthFailure UnrecognizedClientException"
    " MissingSecurityHeader InvalidClientTokenId MissingAuthenticationToken CredentialsNotSupported"
)
_AZURE = "AuthenticationFailed InvalidAuthenticationInfo NoAuthenticationInformation AccountIsDisabled"
_GOOGLE = "AuthenticationRequired InvalidCredentials"
_CREDENTIALS = frozenset(f"{_AWS} {_AZURE} {_GOOGLE}".split())
_REGION = (
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
)
_WRONG_REGION = "incorrectly configured region"
_DECIDED = (
    ValueError,
    OSError,  # the built-in ones are of local files: a spool that is gone
    exceptions.AlreadyExistsError,
    exceptions.InvalidPathError,
    exceptions.NotFoundError,
    exceptions.NotModifiedError,
    exceptions.NotSupportedError,
    exceptions.PermissionDeniedError,
    exceptions.PreconditionError,
    exceptions.UnauthenticatedError,
    exceptions.UnknownConfigurationKeyError,
)
_NO_CREDENTIALS = (
    "169.254.169.254",
    "169.254.170.2",
    "latest/api/token",
    "metadata.google.internal",
    "/metadata/",
)
BUSY = (429, 503)  # throttled: says nothing about the object that was asked for

LOGIN = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (aws configure export-credentials --format env"
    " prints them), give the machine a role, or for a public bucket set storage.anonymous: true",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, run gcloud auth application-default login, give the machine a"
    " service account, or for a public bucket set storage.anonymous: true",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, give the machine an identity, or for"
    " a public container set storage.anonymous: true",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a store said: HTTP ``status`` (0: it gave no answer), its error ``code``, one line of text."""

    status: int
    code: str
    text: str

    @staticmethod
    def of(error: Exception) -> Answer:
        """Read an obstore error; its text may show a signed address, so only known parts of it are kept."""
        raw = str(error)
        status = re.search(r"status code: (\d+)", raw)
        code = re.search(r"<Code>(\w+)</Code>", raw) or re.search(r'"(?:reason|code)":\s*"(\w+)"', raw)
        said = re.search(r"<Message>([^<]*)</Message>", raw)
        kind = re.search(r"kind: (\w+)", raw)
        first = re.sub(r"https?://\S+", lambda match: redact(match[0]).split("?")[0], raw.split("\n")[0])
        parts = [f"HTTP {status[1]}" if status else "", code[1] if code else "", said[1] if said else ""]
        text = " ".join(part for part in parts if part) or (f"{kind[1].lower()} failed" if kind else first)
        return Answer(int(status[1]) if status else 0, code[1] if code else "", text)


def passes(error: Exception) -> bool:
    """Say whether another attempt may end otherwise: where no whole answer came, or a server in trouble's."""
    if isinstance(error, _DECIDED):
        return False
    answer = Answer.of(error)
    if answer.code in _CREDENTIALS or answer.code in _REGION or _WRONG_REGION in str(error):
        return False
    return (
        answer.status in (0, 408, 429)
        or (answer.status >= 500 and answer.status != 501)
        or answer.code == "RequestTimeout"  # S3 says so with status 400, of a body that came too slowly
    )


def sort(error: Exception, uri: str, kind: str, writing: bool = False, served: bool = False) -> Exception:
    """Return what to raise for an obstore ``error`` at ``uri``, after the last attempt.

    ``served``: the same bucket serves another object even now, so that it is not down.
    """
    answer = Answer.of(error)
    shown = redact(uri)
    if any(place in str(error) for place in _NO_CREDENTIALS):
        return EnvironmentFault(f"{shown}: no credentials were found", LOGIN[kind])
    if answer.status == 401 or answer.code in _CREDENTIALS:
        return EnvironmentFault(f"{shown}: the credentials are refused ({answer.text})", LOGIN[kind])
    if answer.code in _REGION or _WRONG_REGION in str(error):
        return EnvironmentFault(
            f"{shown}: the bucket is in another region ({answer.text})", "set storage.region"
        )
    if isinstance(error, exceptions.AlreadyExistsError):
        return AlreadyExists(shown)
    if isinstance(error, exceptions.PreconditionError):
        return Changed(shown)
    if writing:
        return _of_writing(answer, shown)
    return _of_reading(error, answer, shown, served)


def _of_writing(answer: Answer, shown: str) -> Exception:
    mend = {
        403: "give the credentials the right to write there",
        404: "create the bucket, or check its name",
        501: "use a store that knows conditional writes (If-None-Match)",
    }
    return EnvironmentFault(f"{shown} was not written ({answer.text})", mend.get(answer.status, _down(shown)))


def _of_reading(error: Exception, answer: Answer, shown: str, served: bool) -> Exception:
    if isinstance(error, FileNotFoundError | exceptions.NotFoundError) or answer.status == 404:
        if answer.code in ("NoSuchBucket", "ContainerNotFound"):
            return NoSuchPlace(f"{shown} does not exist (there is no such bucket)")
        return NotFound(f"{shown} does not exist")
    if isinstance(error, exceptions.PermissionDeniedError) or answer.status == 403:
        return Forbidden(f"{shown}: {answer.text}")
    if isinstance(error, ValueError | exceptions.InvalidPathError):
        return Unreadable(f"{shown}: object stores are not asked for names with empty or dotted parts")
    if 400 <= answer.status < 500 and answer.status not in (408, 429):
        return Unreadable(f"{shown}: {answer.text}")
    if served and answer.status not in BUSY:
        return Unreadable(f"{shown}: {answer.text}, while others beside it were served")
    return EnvironmentFault(f"{shown}: the storage does not answer ({answer.text})", _down(shown))


def of_listing(error: Exception, uri: str, kind: str) -> Exception:
    """Return what to raise when a listing fails."""
    if isinstance(error, exceptions.InvalidPathError):
        name = re.search(r'[Pp]ath "([^"]*)"', str(error))
        return UserError(
            f"{redact(uri)} holds an object whose name has an empty or dotted part"
            f" ({name[1] if name else 'unknown'}), which cannot be addressed safely\n"
            "  what to do: rename it, or give a folder without it"
        )
    return sort(error, uri, kind)


def _down(shown: str) -> str:
    return f"check the network and the endpoint of {shown.split('/')[2]}, then give the same command"
