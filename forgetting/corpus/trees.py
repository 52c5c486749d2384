"""Open Assistant's message trees → conversations along the best-ranked replies."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from forgetting.errors import UserError

Message = dict[str, Any]
FLAT_COLUMNS = ("message_id", "parent_id", "text", "role")


def tree_conversations(
    root: Message, top_replies: int | None, languages: list[str] | None, left_out: Counter[str]
) -> list[list[dict[str, str]]]:
    """All conversations of a tree: from the root to the last assistant message of each branch.

    At a prompter's message the `top_replies` best-ranked assistant replies are followed (rank 0 is the best; unranked
    ones come last, in file order). At an assistant's message every prompter reply is followed: they are different
    continuations, and the data set does not rank them. A branch that ends in a prompter's message nobody answered ends
    at the assistant's message before it. Deleted messages, those that failed their review and those in another language
    are left out with everything below them.

    Args:
        root: The first prompter's message, its answers nested in `replies`.
        top_replies: How many replies to follow at each turn; None for all.
        languages: Languages to keep; None for all.
        left_out: Counts the messages left out, by reason (not what lies below them).

    Returns:
        Conversations in depth-first order.
    """
    found: list[list[dict[str, str]]] = []
    stack: list[tuple[Message, list[dict[str, str]]]] = [(root, [])] if _is_kept(root, languages, left_out) else []
    while stack:  # no recursion: a thread may be deeper than Python's stack
        message, before = stack.pop()
        is_assistant = message.get("role") == "assistant"
        path = [*before, {"role": "assistant" if is_assistant else "user", "content": message.get("text") or ""}]
        replies = [reply for reply in message.get("replies") or [] if _is_kept(reply, languages, left_out)]
        if is_assistant:
            # A prompter's reply that leads to no further answer adds nothing to what ends here.
            replies = [reply for reply in replies if _has_answer(reply, languages)]
            if not replies:
                found.append(path)
        else:
            replies = [reply for reply in replies if reply.get("role") == "assistant"]
            replies = sorted(replies, key=_rank)[:top_replies]
        stack += [(reply, path) for reply in reversed(replies)]
    return found


def trees_of(rows: Iterable[Message], column: str) -> Iterator[tuple[int, dict[str, Message]]]:
    """Flat messages that name their parent → trees, each as its root's row with the tree in `column`.

    Yields:
        The root's row number and the row, in order of the roots.

    Raises:
        UserError: A column is missing.
    """
    nodes: dict[str, Message] = {}
    roots: list[tuple[int, Message]] = []
    children: dict[str, list[Message]] = {}
    for number, row in enumerate(rows):
        if missing := [name for name in FLAT_COLUMNS if name not in row]:
            raise UserError(
                f"tree: parent_id expects one message a row with the columns {', '.join(FLAT_COLUMNS)}; "
                f"{', '.join(missing)} is missing. The columns are {', '.join(map(repr, row))}."
            )
        node = dict(row)
        nodes[node["message_id"]] = node
        if node["parent_id"] is None:
            roots.append((number, node))
        else:
            children.setdefault(node["parent_id"], []).append(node)
    for identity, replies in children.items():
        if identity in nodes:
            nodes[identity]["replies"] = replies
    for number, root in roots:
        yield number, {**root, column: root}


def _is_kept(message: Message, languages: list[str] | None, left_out: Counter[str]) -> bool:
    reason = _reason_against(message, languages)
    if reason is not None:
        left_out[reason] += 1
    return reason is None


def _reason_against(message: Message, languages: list[str] | None) -> str | None:
    if message.get("deleted"):
        return "message deleted"
    if message.get("review_result") is False:
        return "message failed its review"
    if languages is not None and message.get("lang") not in languages:
        return "message in another language"
    if not (message.get("text") or "").strip():
        return "message empty"
    return None


def _has_answer(prompter: Message, languages: list[str] | None) -> bool:
    return any(
        reply.get("role") == "assistant" and _reason_against(reply, languages) is None
        for reply in prompter.get("replies") or []
    )


def _rank(message: Message) -> float:
    rank = message.get("rank")
    return float("inf") if rank is None else float(rank)
