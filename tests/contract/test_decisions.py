"""Decisions that were logged by earlier versions: replayed, they are the same to the last bit."""

from pathlib import Path

from penstock_router.replay import replay_log

LOGGED = Path(__file__).parent / "decisions.jsonl"


def test_logged_decisions_are_made_again_to_the_last_bit() -> None:
    replayed = list(replay_log(LOGGED))

    assert len(replayed) == 12
    assert [each.decision_id for each in replayed if not each.is_same] == []
