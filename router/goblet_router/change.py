"""What another membership would move: slots, repositories, bytes. Pure."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from goblet_shared.contract import NodeName
from goblet_shared.repo_key import RepoKey
from goblet_shared.ring import SLOTS, Ring, moves, ring_id, slot_of

Held = Mapping[NodeName, Mapping[RepoKey, int]]
"""Which nodes hold which mirrors, and of how many bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedRepo:
    """A repository that somebody holds and whose owner would change."""

    key: RepoKey
    bytes: int
    """What has to be copied; 0 if the new owner holds it already."""
    old: NodeName
    new: NodeName


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What differs between two rings."""

    old: Ring
    new: Ring
    slots: Mapping[int, tuple[NodeName, NodeName]]
    repos: tuple[MovedRepo, ...]
    """The largest first."""

    @property
    def bytes(self) -> int:
        """What has to be copied in all."""
        return sum(repo.bytes for repo in self.repos)

    def lines(self) -> Iterator[str]:
        """Return it for people."""
        yield (
            f"ring {ring_id(self.old)} of {len(self.old.members)} -> "
            f"ring {ring_id(self.new)} of {len(self.new.members)}: "
            f"{len(self.slots)} of {SLOTS} slots move ({len(self.slots) / SLOTS:.1%}), "
            f"with {len(self.repos)} repositories that are held, {shown(self.bytes)} to copy"
        )
        repos = Counter((repo.old, repo.new) for repo in self.repos)
        for (old, new), count in sorted(Counter(self.slots.values()).items()):
            yield f"{old} -> {new}  {count} slots  {repos[old, new]} repositories"
        for repo in self.repos:
            yield f"{repo.key}  {repo.old} -> {repo.new}  {shown(repo.bytes)}"

    def as_dict(self) -> dict[str, object]:
        """Return it for programs."""
        return {
            "old": {"ring": ring_id(self.old), "members": list(self.old.members)},
            "new": {"ring": ring_id(self.new), "members": list(self.new.members)},
            "slots": [
                {"slot": slot, "from": old, "to": new}
                for slot, (old, new) in sorted(self.slots.items())
            ],
            "repositories": [
                {"key": repo.key, "bytes": repo.bytes, "from": repo.old, "to": repo.new}
                for repo in self.repos
            ],
            "bytes": self.bytes,
        }


def change_of(old: Ring, new: Ring, held: Held) -> Change:
    """Return what would move; a repository that several hold counts once, as its owner has it."""
    slots = moves(old, new)
    sizes: dict[RepoKey, int] = {}
    for name in sorted(held):
        for key, size in held[name].items():
            is_owner = old.members and old.owners(key)[0] == name
            sizes[key] = size if is_owner or key not in sizes else sizes[key]
    repos = []
    for key, size in sizes.items():
        if (move := slots.get(slot_of(key))) is not None:
            is_there = key in held.get(move[1], {})
            repos.append(
                MovedRepo(key=key, bytes=0 if is_there else size, old=move[0], new=move[1])
            )
    repos.sort(key=lambda repo: (-repo.bytes, repo.key))
    return Change(old=old, new=new, slots=slots, repos=tuple(repos))


def shown(size: int) -> str:
    """Return a number of bytes for people."""
    for unit, limit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= limit:
            return f"{size / limit:.1f} {unit}"
    return f"{size} B"
