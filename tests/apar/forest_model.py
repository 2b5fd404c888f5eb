"""A slow, obvious model of the forest: objects in lists, every question answered by looking at everything.

It knows no slots' numbers, no page ids, no stacks and no running sums. A page is a count, and whether a grant is safe
is found by granting it and then playing all branches to their ends in reading order.
"""

from __future__ import annotations

import dataclasses

from apar.forest import CANCEL, ForestConfig

LIVE, FINISHED, SHARED = "live", "finished", "shared"


@dataclasses.dataclass(eq=False)
class Stream:
    """A branch and its stream, or a shared stream."""

    id: int
    request: int
    state: str
    first_position: int
    limit: int
    tokens: list[int]  # one per entry
    context: list[tuple[Stream, int]]  # (stream, entries read)
    parent: Stream | None = None
    depth: int = 0
    path: tuple[int, ...] = ()
    num_children: int = 0
    next_token: int = -1  # sampled, not yet fed
    fork_pending: bool = False
    has_row: bool = False
    pinned: bool = False
    written: list[int] = dataclasses.field(default_factory=list)  # all tokens sampled, the last one included

    def visible(self) -> list[int]:
        """The tokens that the branch reads, in order."""
        seen = [token for stream, end in self.context for token in stream.tokens[:end]]
        return seen + self.tokens


@dataclasses.dataclass
class Row:
    branch: Stream
    token: int
    position: int
    may_fork: bool
    visible: list[int]  # a join is seen from the next step on


class ForestModel:
    def __init__(self, config: ForestConfig) -> None:
        self.config = config
        self.order: list[Stream] = []
        self.shared: list[Stream] = []
        self.rows: list[Row] = []
        self.row_limit = config.max_rows  # of the step that is made last
        self.next_id = 0
        self.opened: list[tuple[int, int, int, int, int]] = []  # id, parent, request, fork position, child index
        self.ended: list[tuple[int, int, str, int]] = []  # id, request, reason, entries
        self.done: list[int] = []

    # ---- what there is ---------------------------------------------------------------------------------------------

    def live(self) -> list[Stream]:
        return [stream for stream in self.order if stream.state == LIVE]

    def held_pages(self, stream: Stream) -> int:
        return -(-len(stream.tokens) // self.config.page_size)

    def free_pages(self) -> int:
        return self.config.num_pages - sum(map(self.held_pages, self.order + self.shared))

    def free_slots(self) -> int:
        return self.config.num_slots - len(self.order) - len(self.shared)

    def stays_for_parent(self, stream: Stream, unfinished: list[Stream]) -> bool:
        return self.config.keep_finished and stream.parent in unfinished

    def entries_read(self, stream: Stream, unfinished: list[Stream]) -> int:
        """Longest prefix of a stream that is read from the contexts of these branches."""
        if self.stays_for_parent(stream, unfinished):
            return len(stream.tokens)
        ends = (end for branch in unfinished for other, end in branch.context if other is stream)
        return max(ends, default=0)

    # ---- the banker's rule ------------------------------------------------------------------------------------------

    def own_pages(self, stream: Stream) -> int:
        return -(-(stream.limit - 1 - stream.first_position) // self.config.page_size)

    def need(self, stream: Stream) -> tuple[int, int]:
        """(pages, slots) that a branch and its future subtree may still take, one branch after the other."""
        config = self.config
        pages, slots, own = self.own_pages(stream) - self.held_pages(stream), 0, self.own_pages(stream)
        children = config.max_children - stream.num_children
        for _ in range(stream.depth + 1, config.max_depth):
            if children == 0:
                break
            staying = children if config.keep_finished else 1
            slots += staying
            pages += staying * own if config.keep_finished else 1
            children = config.max_children
        return pages, slots

    def is_safe(self) -> bool:
        """Whether all unfinished branches can end, one after the other in reading order."""
        unfinished = self.live()
        if self.free_pages() < 0 or self.free_slots() < 0:
            return False
        for index, branch in enumerate(unfinished):
            ended, after = unfinished[:index], unfinished[index:]
            pages, slots = self.free_pages(), self.free_slots()
            for stream in self.order:
                if stream in after:
                    continue
                kept = self.stays_for_parent(stream, after) or self.entries_read(stream, after) > 0
                if not kept:
                    pages += self.held_pages(stream)
                    slots += 1
                elif stream in ended:
                    pages -= self.own_pages(stream) - self.held_pages(stream)
            need_pages, need_slots = self.need(branch)
            if need_pages > pages or need_slots > slots:
                return False
        return True

    # ---- requests --------------------------------------------------------------------------------------------------

    def admit(self, request: int, prompt: list[int], limit: int, shared: Stream | None = None) -> Stream | str:
        """The trunk, "wait", or "never"."""
        start = len(shared.tokens) if shared else 0
        trunk = Stream(
            id=self.next_id,
            request=request,
            state=LIVE,
            first_position=start,
            limit=limit,
            tokens=prompt[start:-1],
            context=[(shared, start)] if shared else [],
            next_token=prompt[-1],
        )
        runs = bool(self.live())
        self.order.append(trunk)
        if not self.is_safe():
            self.order.pop()
            return "wait" if runs else "never"
        self.next_id += 1
        return trunk

    def open_shared(self, tokens: list[int]) -> Stream | None:
        stream = Stream(-1, -1, SHARED, 0, 0, tokens, [], pinned=True)
        self.shared.append(stream)
        if not self.is_safe():
            self.shared.pop()
            return None
        return stream

    def close_shared(self, stream: Stream) -> None:
        stream.pinned = False
        self._release()

    def join(self, parent: Stream, children: list[Stream]) -> None:
        parent.context += [(child, len(child.tokens)) for child in children]

    def cancel(self, request: int) -> None:
        self._clear_events()
        for stream in self.live():
            if stream.request == request:
                self._end(stream, "cancelled")
        self._release()
        self.rows = [row for row in self.rows if row.branch.state == LIVE]

    # ---- steps -----------------------------------------------------------------------------------------------------

    def advance(self, sampled: list[int], row_limit: int | None = None) -> None:
        """sampled: one token for each of self.rows; row_limit: most rows of the next step."""
        self._clear_events()
        for row, token in zip(self.rows, sampled, strict=True):
            branch, position = row.branch, row.position + 1
            branch.has_row = False
            if token == CANCEL:
                self._end(branch, "cancelled")
                continue
            branch.next_token = token
            branch.written.append(token)
            if token in self.config.stop_tokens:
                self._end(branch, "stop")
            elif position + 1 >= branch.limit:
                self._end(branch, "length")
            elif row.may_fork and token == self.config.fork_token:
                branch.fork_pending = True
        self._release()
        self.row_limit = min(row_limit or self.config.max_rows, self.config.max_rows)
        self._schedule()

    def schedule(self) -> None:
        self._clear_events()
        self.row_limit = self.config.max_rows
        self._schedule()

    def may_fork(self, branch: Stream, token: int, position: int) -> bool:
        config = self.config
        return (
            config.fork_token >= 0
            and branch.depth + 1 < config.max_depth
            and branch.num_children < config.max_children
            and token not in (config.fork_token, config.child_token)
            and position + 3 < branch.limit
        )

    def _clear_events(self) -> None:
        self.opened, self.ended, self.done = [], [], []

    def _end(self, branch: Stream, reason: str) -> None:
        branch.state = FINISHED
        branch.has_row = branch.fork_pending = False
        self.ended.append((branch.id, branch.request, reason, len(branch.tokens)))

    def _release(self) -> None:
        unfinished = self.live()
        requests = list(dict.fromkeys(stream.request for stream in self.order))
        self.done += [one for one in requests if all(stream.request != one for stream in unfinished)]
        for stream in [stream for stream in self.order if stream.state == FINISHED]:
            del stream.tokens[self.entries_read(stream, unfinished) :]
            if not stream.tokens and not self.stays_for_parent(stream, unfinished):
                self.order.remove(stream)
        for stream in list(self.shared):
            if not stream.pinned and self.entries_read(stream, unfinished) == 0:
                self.shared.remove(stream)

    def _schedule(self) -> None:
        self.rows = []
        for branch in self.live():
            if not branch.has_row and self._has_place(branch):
                self._feed(branch)
            if branch.has_row:
                self._add_row(branch)

    def _has_place(self, branch: Stream) -> bool:
        """Whether max_live_branches and max_rows leave a row, behind those before it and those granted earlier."""
        live = self.live()
        index = live.index(branch)
        rows = len(self.rows) + sum(other.has_row for other in live[index:])
        rank = sum(other.request == branch.request for other in live[:index])
        rank += sum(other.request == branch.request and other.has_row for other in live[index:])
        return rank < self.config.max_live_branches and rows < self.row_limit

    def _feed(self, branch: Stream) -> None:
        branch.tokens.append(branch.next_token)
        child = None
        if branch.fork_pending:
            child = self._child(branch)
            self.order.insert(self.order.index(branch), child)
            branch.num_children += 1
        if not self.is_safe():
            branch.tokens.pop()
            if child:
                self.order.remove(child)
                branch.num_children -= 1
            return
        branch.has_row = True
        if child is None:
            return
        branch.fork_pending = False
        self.next_id += 1
        position = child.first_position - 1
        self.opened.append((child.id, branch.id, branch.request, position, branch.num_children - 1))
        if self._has_place(child):
            self._feed(child)
        if child.has_row:
            self._add_row(child)

    def _child(self, branch: Stream) -> Stream:
        return Stream(
            id=self.next_id,
            request=branch.request,
            state=LIVE,
            first_position=branch.first_position + len(branch.tokens),
            limit=branch.limit,
            tokens=[],
            context=[*branch.context, (branch, len(branch.tokens))],
            parent=branch,
            depth=branch.depth + 1,
            path=(*branch.path, branch.num_children),
            next_token=self.config.child_token,
            written=[self.config.child_token],
        )

    def _add_row(self, branch: Stream) -> None:
        position = branch.first_position + len(branch.tokens) - 1
        token = branch.tokens[-1]
        self.rows.append(Row(branch, token, position, self.may_fork(branch, token, position), branch.visible()))
