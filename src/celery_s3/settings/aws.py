"""The AWS environment: variables, and the shared configuration files, read as botocore reads them.

botocore itself is not asked: importing it costs half a second and 24 MB. What is found here is given to both
S3 clients in so many words, because they do not read the same variables (boto3 ignores AWS_REGION, obstore the
files).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property

from .kinds import CABundle, Token, Wrong
from .options import OPTIONS
from .sources import Given

__all__ = ["AwsEnvironment"]

_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_WEB_IDENTITY = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN")
#: What makes a profile one whose credentials only boto3 can use, when the environment has none.
_PROFILE_CREDENTIALS = ("aws_access_key_id", "sso_session", "sso_start_url", "credential_process", "login_session")
#: What makes a profile's `role_arn` an assumed role, which botocore prefers to the environment's web identity.
_ROLE_SOURCES = ("source_profile", "credential_source", "web_identity_token_file")

Section = Mapping[str, str]


class AwsEnvironment:
    """What the environment says about one profile.

    Arguments:
        environ: the environment's variables; an empty one counts as not set.
        profile: the profile that the settings name; ``None`` takes the environment's.
        mistakes: where unreadable files and missing profiles are told.
    """

    def __init__(self, environ: Mapping[str, str], profile: str | None, mistakes: list[str]) -> None:
        self._environ = environ
        self._mistakes = mistakes
        self._named = profile
        self.profile = profile or environ.get("AWS_DEFAULT_PROFILE") or environ.get("AWS_PROFILE") or "default"

    def given(self) -> Iterator[Given]:
        """Region, endpoint and CA bundle: variables first, then the profile."""
        for name, key in (("aws_region", "region"), ("endpoint_url", "endpoint_url"), ("verify", "ca_bundle")):
            if name == "endpoint_url" and self._is_true("ignore_configured_endpoint_urls"):
                continue
            option = OPTIONS[name]
            variable = next((item for item in option.environment if self._environ.get(item)), None)
            value = self._environ[variable] if variable else self._from_profile(key)
            if value:
                where = variable or f"`{key}` of the AWS profile {self.profile!r}"
                # in the environment a CA bundle is always a file's name: `false` does not switch verification off
                yield Given(name, value, where, CABundle() if name == "verify" else option.kind)

    @property
    def special_endpoints(self) -> bool:
        """Whether FIPS or dual-stack hosts are asked for."""
        return self._is_true("use_fips_endpoint") or self._is_true("use_dualstack_endpoint")

    @property
    def profile_credentials(self) -> bool:
        """Whether boto3's chain ends in the profile, which obstore's chain does not read."""
        if all(map(self._environ.get, _KEYS)):
            return False
        section = self.section
        if "role_arn" in section and any(key in section for key in _ROLE_SOURCES):
            return True
        if all(map(self._environ.get, _WEB_IDENTITY)):
            return False
        return any(key in section for key in _PROFILE_CREDENTIALS)

    def check_keys(self) -> None:
        """Tell when the environment has one half of a pair, or what no request could carry.

        boto3 fails with half a pair, obstore looks elsewhere; with a line break both fail, as if the server had.
        """
        have, lack = sorted(_KEYS, key=lambda name: not self._environ.get(name))
        if self._environ.get(have) and not self._environ.get(lack):
            self._mistakes.append(f"{have} is set in the environment and {lack} is not: set both or neither")
        for name in (*_KEYS, "AWS_SESSION_TOKEN"):
            try:
                Token().check(self._environ.get(name) or "unset")
            except Wrong as exc:
                self._mistakes.append(f"{name} in the environment {exc}")

    @cached_property
    def section(self) -> Section:
        """The profile's values, those of the credentials file last."""
        found = [self._config.get(self.profile), self._credentials.get(self.profile)]
        if self.profile != "default" and found == [None, None]:
            where = "`profile`" if self._named else "AWS_PROFILE (or AWS_DEFAULT_PROFILE)"
            self._mistakes.append(f"{where} names {self.profile!r}, which is in neither of the AWS configuration files")
        return {key: value for section in found if section for key, value in section.items()}

    def _from_profile(self, key: str) -> str | None:
        services = self._files_sections.get(("services", self.section.get("services", "")), {})
        nested = _nested(services.get("s3", "")) if key == "endpoint_url" else {}
        return nested.get(key) or self.section.get(key)

    def _is_true(self, key: str) -> bool:
        value = self._environ.get(f"AWS_{key.upper()}") or self.section.get(key, "")
        return value.lower() == "true"

    @cached_property
    def _files_sections(self) -> dict[tuple[str, str], Section]:
        """The sections of the configuration file that have a kind and a name, as ``[profile a]``."""
        sections = self._read("AWS_CONFIG_FILE", "~/.aws/config")
        return {split: values for title, values in sections.items() if (split := _split(title))}

    @property
    def _config(self) -> dict[str, Section]:
        return {name: values for (kind, name), values in self._files_sections.items() if kind == "profile"}

    @cached_property
    def _credentials(self) -> dict[str, Section]:
        return self._read("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")

    def _read(self, variable: str, default: str) -> dict[str, Section]:
        name = self._environ.get(variable) or default
        path = os.path.expanduser(os.path.expandvars(name))
        if not os.path.isfile(path):
            return {}
        import configparser  # most processes have no such file

        parser = configparser.RawConfigParser()
        try:
            parser.read([path])
        except (configparser.Error, UnicodeDecodeError, OSError) as exc:
            # the error itself would quote lines, which may be secrets
            self._mistakes.append(f"{name} cannot be read ({type(exc).__name__}): correct or remove it")
            return {}
        return {title: dict(parser.items(title)) for title in parser.sections()}


def _split(title: str) -> tuple[str, str] | None:
    import shlex

    if title == "default":
        return "profile", title
    try:
        kind, name = shlex.split(title)
    except ValueError:
        return None
    return kind, name


def _nested(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}
