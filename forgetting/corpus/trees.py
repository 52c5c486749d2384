"""Open Assistant's message trees → conversations along the best-ranked replies."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from forgetting.corpus.configuration import shown_columns
from forgetting.corpus.values import is_blank, is_unicode
from forgetting.errors import UserError

Message = dict[str, Any]
ROLES = ("prompter", "user", "assistant")
FLAT_COLUMNS = ("message_id", "parent_id", "text", "role")


def tree_conversations(
    root: Message, top_replies: int | None, languages: list[str] | None, left_out: Counter[str]
) -> list[list[dict[str, str]]]:
    """All conversations of a tree: from the root to the last assistant message of each branch.

    At a prompter's message the `top_replies` best-ranked assistant replies are followed (rank 0 is the best; unranked
    ones come last, in file order). At an assistant's message every prompter reply is followed: they are different
    continuations, and the data set does not rank them. A branch that ends in a prompter's message nobody answered ends
    at the assistant's message before it. Deleted messages, those that failed their review, those in another language
    and those that cannot be read are left out with everything below them.

    Args:
        root: The first prompter's message, its answers nested in `replies`.
        top_replies: How many replies to follow at each turn; None for all.
        languages: Languages to keep; None for all.
        left_out: Counts the messages left out, by reason (not what lies below them).

    Returns:
        Conversations in depth-first order.
    """
    conversations: list[list[dict[str, str]]] = []
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
                conversations.append(path)
        else:
            replies = [reply for reply in replies if reply.get("role") == "assistant"]
            replies = sorted(replies, key=_rank)[:top_replies]
        stack += [(reply, path) for reply in reversed(replies)]
    return conversations


def trees_of(rows: Iterable[Message], column: str, left_out: Counter[str]) -> Iterator[tuple[int, dict[str, Message]]]:
    """Flat messages that name their parent → trees, each as its root's row with the tree in `column`.

    Args:
        rows: One message each, in any order.
        column: Where the tree goes.
        left_out: Counts the messages that belong to no tree, by reason: their identity is not a text or a whole number
            or was there before, or their parent is not there (or is below them).

    Yields:
        The root's row number and the row, in order of the roots.

    Raises:
        UserError: A column is missing.
    """
    nodes: dict[Any, Message] = {}
    roots: list[tuple[int, Message]] = []
    children: dict[Any, list[Message]] = {}
    for number, row in enumerate(rows):
        if missing := [name for name in FLAT_COLUMNS if name not in row]:
            raise UserError(
                f"tree: parent_id expects one message a row with the columns {', '.join(FLAT_COLUMNS)}; "
                f"{', '.join(missing)} is missing. The columns are {shown_columns(list(row))}."
            )
        identity, parent = row["message_id"], row["parent_id"]
        is_root = is_blank(parent)
        if not isinstance(identity, str | int) or not (is_root or isinstance(parent, str | int)):
            left_out["malformed message_id or parent_id"] += 1
            continue
        if identity in nodes:
            left_out["message_id of an earlier message"] += 1
            continue
        node = nodes[identity] = {**row, "replies": []}
        if is_root:
            roots.append((number, node))
        else:
            children.setdefault(parent, []).append(node)
    num_placed = 0
    stack = [node for _, node in roots]
    while stack:
        node = stack.pop()
        num_placed += 1
        node["replies"] = children.get(node["message_id"], [])
        stack += node["replies"]
    if num_placed < len(nodes):
        left_out["message without its parent"] += len(nodes) - num_placed
    for number, root in roots:
        yield number, {**root, column: root}


def _is_kept(message: Any, languages: list[str] | None, left_out: Counter[str]) -> bool:
    reason = _reason_against(message, languages)
    if reason is not None:
        left_out[reason] += 1
    return reason is None


def _reason_against(message: Any, languages: list[str] | None) -> str | None:
    if not _is_well_formed(message):
        return "message malformed"
    if message.get("deleted"):
        return "message deleted"
    if message.get("review_result") is False:
        return "message failed its review"
    if languages is not None and message.get("lang") not in languages:
        return "message in another language"
    if is_blank(message.get("text")):
        return "message empty"
    return None


def _is_well_formed(message: Any) -> bool:
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        return False
    text, replies, rank = (message.get(key) for key in ("text", "replies", "rank"))
    return (
        isinstance(text, str | None)
        and (text is None or is_unicode(text))
        and isinstance(replies, list | None)
        and isinstance(rank, int | float | None)
    )


def _has_answer(prompter: Message, languages: list[str] | None) -> bool:
    return any(
        _reason_against(reply, languages) is None and reply["role"] == "assistant"
        for reply in prompter.get("replies") or []
    )


def _rank(message: Message) -> int | float:
    rank = message.get("rank")
    return float("inf") if rank is None or rank != rank else rank
