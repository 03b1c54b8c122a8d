"""The jobs that come along: inside a wheel's package, beside it in a checkout."""

from __future__ import annotations

import os
import pathlib

from cnnbatch.config.templates import has_lesson
from cnnbatch.config.yaml import parse_text
from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest


def jobs_folder() -> pathlib.Path:
    """Return the folder of the jobs that come along: inside a wheel's package, beside it in a checkout."""
    package = pathlib.Path(__file__).resolve().parents[1]
    inside = package / "jobs"
    return inside if inside.is_dir() else package.parent / "jobs"


def job_names() -> list[str]:
    """Return the names that `load_job` knows, sorted."""
    return sorted(path.stem for path in jobs_folder().glob("*.yaml"))


def job_purpose(name: str) -> str:
    """Return the first comment line of the job called ``name``."""
    first = (jobs_folder() / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def jobs_with_lesson() -> list[str]:
    """Return the names of the jobs that take ``lesson=true``, sorted."""
    texts = {name: (jobs_folder() / f"{name}.yaml").read_text(encoding="utf-8") for name in job_names()}
    return [name for name, text in texts.items() if has_lesson(parse_text(text, name).data)]


def find_job(name_or_path: str) -> pathlib.Path:
    """Return the file of a job by its name in ``jobs/`` or by its path; raises UserError for neither."""
    names = job_names()
    if name_or_path in names:
        return jobs_folder() / f"{name_or_path}.yaml"
    path = pathlib.Path(name_or_path).expanduser()
    if os.path.isfile(path):  # Which, unlike Path.is_file, bears a name too long for any file.
        return path
    near = nearest(path.stem, names)
    raise UserError(
        f"expected the name of a job or a YAML file, got {name_or_path!r}, which is neither\n"
        f"  {f'did you mean {near}? ' if near else ''}known names: {', '.join(names)}"
    )
