"""A test that runs alone runs alone, and gets its turn."""

import threading
from pathlib import Path

from turns import Turns

SOON = 0.1  # seconds in which a thread that is free to go on does


def test_whoever_wants_to_be_alone_waits_and_is_waited_for(tmp_path: Path) -> None:
    turns = Turns(tmp_path)
    order = list[str]()
    inside, go_on = threading.Event(), threading.Event()

    def work(name: str, alone: bool) -> None:
        with turns.turn(alone):
            order.append(name)
            inside.set()
            if name == "first":
                assert go_on.wait(60)

    def start(name: str, alone: bool = False) -> threading.Thread:
        thread = threading.Thread(target=work, args=(name, alone))
        thread.start()
        return thread

    threads = [start("first")]
    assert inside.wait(60)
    inside.clear()
    threads.append(start("beside"))
    assert inside.wait(60)  # two that need not be alone run at the same time
    inside.clear()
    threads.append(start("alone", alone=True))
    assert not inside.wait(SOON)
    threads.append(start("after"))
    assert not inside.wait(SOON)  # though it need not be alone: else who waits might for ever
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert order == ["first", "beside", "alone", "after"]
