"""A model's classes, and which of them those of a ground truth are: by name, by id, or as the job says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from cnnbatch.errors import UserError
from cnnbatch.humanize import nearest
from cnnbatch.truth import NO_TRUTH, Class

_SHOWN = 100  # of a model's names, in a message
_FEW = 20  # of names that it does not know

NO_CLASS = frozenset({"", "__background__", "N/A", "no person"})
"""Names in the places of a network's outputs that stand for no class, as torchvision has them."""

BACKGROUND = frozenset({"__background__", "background"})
"""What models call the class of the pixels that are in no object."""


@dataclass(frozen=True, slots=True)
class ModelClasses:
    """A model's classes: ``names`` and, of its data set, ``ids`` in the same order; an empty name is none.

    ``aliases`` lead from its names to those of that data set, where they differ. ``maps`` is how many of the
    names, the first, are those of maps, where a model has others besides; 0: all are.
    """

    names: Sequence[str]
    ids: Sequence[int] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    maps: int = 0

    def by_name(self) -> dict[str, str]:
        """Return the model's name of every name that it or its data set has for a class."""
        own = {name: name for name in self.names if name}
        return {**{theirs: ours for ours, theirs in self.aliases.items()}, **own}

    def by_id(self, truth: Sequence[Class]) -> dict[int | str, str]:
        """Return the model's name by id; nothing unless ``truth`` is plainly numbered as the model is.

        Half of either's classes have to be alike, but for names that stand for none: in a file of two classes
        ``person`` may be 1 by chance.
        """
        known = self.by_name()
        ours: dict[int | str, str] = {
            number: name for number, name in zip(self.ids, self.names, strict=False) if name
        }
        same = sum(one.id in ours and known.get(one.name) == ours[one.id] for one in truth)
        classes = sum(name not in NO_CLASS for name in ours.values())
        return ours if 2 * same >= max(len(truth), classes) else {}


def match_classes(
    model: ModelClasses,
    truth: Sequence[Class],
    given: Mapping[str, str | None],
    occurring: Collection[str] | None = None,
) -> dict[str, str | None]:
    """Return for each class of the ground truth the model's name of it; None where the job leaves it out.

    ``given`` leads from its names to the model's and wins; then the name counts, then the id where
    at least half of the classes of either are numbered alike. ``occurring`` are the names that something
    has, None where that is all of them; another class that the model does not know is left out.

    Raises:
        UserError: a class of the ground truth that occurs is none of the model's; it names the nearest.
    """
    by_name, by_id = model.by_name(), model.by_id(truth)
    wanted = {one.name: given.get(one.name, one.name) for one in truth}
    ids = {one.name: by_id.get(one.id) for one in truth if one.name not in given}
    found = {
        name: None if want is None else by_name.get(want, ids.get(name)) for name, want in wanted.items()
    }
    lacking = {name: want for name, want in wanted.items() if want is not None and found[name] is None}
    if unknown := {name: want for name, want in lacking.items() if occurring is None or name in occurring}:
        raise _unknown(unknown, by_name)
    return {name: ours for name, ours in found.items() if name not in lacking}


def no_known_label(model: ModelClasses, labels: Sequence[str]) -> UserError:
    """Return what to raise where no image has a label that the model can give."""
    known = model.by_name()
    near = next(((label, name) for label in labels[:_FEW] if (name := nearest(label, known))), None)
    hint = "" if near is None else f", as {near[1]!r} instead of {near[0]!r}"
    return UserError(
        f"none of the labels of the ground truth is a class of the model: {_some(labels, most=_FEW)}\n"
        f"  the model's: {_some([*dict.fromkeys(known.values())])}\n"
        f"  what to do: give labels by the model's names{hint}, or leave the ground truth out "
        f"(input.truth={NO_TRUTH})"
    )


def match_map_classes(
    model: ModelClasses, truth: Sequence[Class], given: Mapping[str, str | None]
) -> dict[str, str | None]:
    """Return for each class of maps the model's name of it; None where the job leaves it out.

    As `match_classes`, but a class that the model does not know is left out.

    Raises:
        UserError: the model knows none of them, or not what ``given`` calls one.
    """
    if not truth:
        raise UserError(
            "no class of the masks is left to judge by\n"
            "  what to do: keep one in input.ignore and input.relabel, or leave the ground truth out "
            f"(input.truth={NO_TRUTH})"
        )
    found = match_classes(model, truth, given, given.keys())
    if any(found.values()):
        return found
    known = model.by_name()
    names = [one.name for one in truth]
    if all(one.name == str(one.id) for one in truth):
        raise _unnamed(list(dict.fromkeys(known.values())))
    near = next(((name, ours) for name in names[:_FEW] if (ours := nearest(name, known))), None)
    hint = "{{{}: {}}}".format(*near) if near else "{TRUTH: MODEL}"
    raise UserError(
        f"none of the classes of the ground truth's maps is one of the model: {_some(names, most=_FEW)}\n"
        f"  the model's: {_some([*dict.fromkeys(known.values())])}\n"
        "  what to do: name the classes in classes.txt beside the masks, say in task.aliases what each is "
        f"called there, as in 'task.aliases={hint}', or leave the ground truth out (input.truth={NO_TRUTH})"
    )


def _unnamed(ours: Sequence[str]) -> UserError:
    """Return what to raise for maps whose numbers have no names; ``ours`` are the model's classes."""
    example = ", ".join(f"{number}: {name}" for number, name in enumerate(ours[:2]))
    return UserError(
        "the values of the masks have no names, so which of the model's classes they are is not known\n"
        f"  the model's: {_some(ours)}\n"
        "  what to do: name them in classes.txt beside the masks, a line each from the value 0 on, or say "
        f"'input.relabel={{{example}}}' and so on, or leave the ground truth out (input.truth={NO_TRUTH})"
    )


def _some(names: Sequence[str], count: int | None = None, most: int = _SHOWN) -> str:
    """Return the first of some names, and how many more there are of ``count`` in all."""
    more = (len(names) if count is None else count) - len(names[:most])
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def _unknown(lacking: Mapping[str, str], known: Mapping[str, str]) -> UserError:
    """Name the classes of the ground truth, what the job called them where it did, and what comes nearest."""
    shown = []
    for name, want in islice(lacking.items(), _FEW):
        called = "" if want == name else f", called {want!r} in task.aliases"
        near = nearest(want, known)
        shown.append(repr(name) + called + (f" (the nearest: {near!r})" if near else ""))
    return UserError(
        f"the ground truth has classes that the model does not know: {_some(shown, len(lacking))}\n"
        f"  the model's: {_some([*dict.fromkeys(known.values())])}\n"
        "  what to do: say in task.aliases what each is called there, or null to leave it out, as in "
        f"'task.aliases={{{next(iter(lacking))}: null}}'"
    )


def named_alike(classes: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Return the network's name of each class that it has, compared by letters and digits alone."""
    by_letters = {_letters(name): name for name in reversed(known)}
    return {name: by_letters[_letters(name)] for name in classes if _letters(name) in by_letters}


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))
