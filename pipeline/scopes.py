"""Name scopes as a tree in which no group has many members, so that a picture can open it step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

GROUP_LIMIT = 32
"""Most members of a group. Larger ones are divided into consecutive parts."""


@dataclass(frozen=True, slots=True)
class Group:
    """A scope or a part of one. `parent` is a position in the list of groups, None at the top; parents come first."""

    label: str
    parent: int | None


@dataclass(slots=True)
class _Scope:
    label: str
    scopes: dict[str, _Scope] = field(default_factory=dict)
    members: list[_Scope | int] = field(default_factory=list)


def group_nodes(names: Sequence[str]) -> tuple[list[Group], list[int | None]]:
    """The groups of nodes given in topological order, and for each node the group that it lies in (None: the top).

    A scope that holds nothing but another scope is one with it. Inlined calls (`PartitionedCall`) are no scopes.
    """
    root = _Scope("")
    for i, name in enumerate(names):
        here = root
        for part in scope_path(name)[:-1]:
            if part not in here.scopes:
                here.scopes[part] = _Scope(part)
                here.members.append(here.scopes[part])
            here = here.scopes[part]
        here.members.append(i)
    groups: list[Group] = []
    owner: list[int | None] = [None] * len(names)
    pending: list[tuple[_Scope, int | None]] = [(_joined(root), None)]
    while pending:
        scope, number = pending.pop()
        for member in _divided(scope.members, names):
            if isinstance(member, int):
                owner[member] = number
            else:
                inner = _joined(member)
                if len(inner.members) == 1 and isinstance(inner.members[0], int):
                    owner[inner.members[0]] = number
                else:
                    groups.append(Group(inner.label, number))
                    pending.append((inner, len(groups) - 1))
    return groups, owner


def scope_path(name: str) -> list[str]:
    """The parts of a node's name; never empty."""
    parts = [part for part in name.split("/") if part and not part.endswith("PartitionedCall")]
    return parts or [name]


def _joined(scope: _Scope) -> _Scope:
    """A scope with those that it only wraps taken together, `a` and `b` as `a/b`."""
    while len(scope.members) == 1 and isinstance(scope.members[0], _Scope):
        inner = scope.members[0]
        scope = _Scope(f"{scope.label}/{inner.label}".lstrip("/"), members=inner.members)
    return scope


def _divided(members: Sequence[_Scope | int], names: Sequence[str]) -> Sequence[_Scope | int]:
    """The members, or as many levels of parts above them as the limit asks for."""
    while len(members) > GROUP_LIMIT:
        starts = _starts([_ends(member, names) for member in members])
        parts = [list(members[a:b]) for a, b in zip(starts, [*starts[1:], len(members)], strict=True)]
        members = [_Scope(_span(part, names), members=part) for part in parts]
    return members


def _starts(labels: Sequence[tuple[str, str]]) -> list[int]:
    """Where parts begin: about evenly, moved to where neighbours' names have least in common (`block1_…`, `block2_…`)."""
    starts = [0]
    while len(labels) - starts[-1] > GROUP_LIMIT:
        low, high = starts[-1] + GROUP_LIMIT // 2, starts[-1] + GROUP_LIMIT
        starts.append(max(range(low, high + 1), key=lambda i: (-_shared(labels[i - 1][1], labels[i][0]), i)))
    return starts


def _ends(member: _Scope | int, names: Sequence[str]) -> tuple[str, str]:
    """The first and the last name in a member that may be a part already."""
    if isinstance(member, int):
        return (scope_path(names[member])[-1],) * 2
    first, _, last = member.label.partition(" … ")
    return first, last or first


def _span(part: Sequence[_Scope | int], names: Sequence[str]) -> str:
    first, last = _ends(part[0], names)[0], _ends(part[-1], names)[1]
    return first if first == last else f"{first} … {last}"


def _shared(a: str, b: str) -> int:
    """How many letters two names begin with in common."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
