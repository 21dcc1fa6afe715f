"""A file that is watched, on a real file system."""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lb_core.errors import ConfigError, Problem
from lb_core.watch import FileWatch, Stamp
from tests.core.build import Clock
from tests.waiting import until

QUICK_S = 0.01


async def some_looks() -> None:
    """As long as a watch takes for at least five looks on an idle machine."""
    await asyncio.sleep(10 * QUICK_S)


class Rig:
    """A watch of the file `config`: a text is good when it is a number of lines and then `end`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config"
        self.good: list[str] = []
        self.bad: list[str] = []
        self.loads = 0
        self.threads: set[str] = set()
        self.clock = Clock()
        self.during_load: Callable[[], None] = lambda: None
        self.refuse: set[str] = set()
        self.broken: set[str] = set()

    def load(self, path: Path) -> str:
        self.loads += 1
        self.threads.add(threading.current_thread().name)
        text = path.read_text()
        self.during_load()
        if not text.endswith("end"):
            raise ConfigError(str(path), (Problem("", f"no end: {text}"),))
        return text

    def take(self, text: str) -> None:
        if text in self.refuse:
            raise ConfigError("it", (Problem("", "refused"),))
        if text in self.broken:
            raise LookupError
        self.good.append(text)

    def watch(self, *, loaded: Stamp | None = None, settle_s: float = 1.0) -> FileWatch[str]:
        return FileWatch(
            self.path,
            self.load,
            self.take,
            lambda error: self.bad.append(error.problems[0].message),
            loaded=loaded,
            interval_s=QUICK_S,
            settle_s=settle_s,
            clock=self.clock,
        )

    @asynccontextmanager
    async def watching(self, text: str = "1 end", *, settle_s: float = 1.0) -> AsyncIterator[FileWatch[str]]:
        """`text` is in use already."""
        self.path.write_text(text)
        watch = self.watch(loaded=Stamp.of(self.path), settle_s=settle_s)
        watch.start()
        yield watch
        await watch.stop()

    def rename_over(self, text: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def test_what_is_in_use_already_is_not_told_again(rig: Rig) -> None:
    async with rig.watching():
        await some_looks()
    assert (rig.good, rig.bad, rig.loads) == ([], [], 0)


async def test_without_a_stamp_the_file_is_read_at_first(rig: Rig) -> None:
    rig.path.write_text("1 end")
    watch = rig.watch()
    watch.start()
    watch.start()
    await until(lambda: rig.good == ["1 end"])
    await watch.stop()


async def test_a_change_between_reading_and_watching_is_seen(rig: Rig) -> None:
    rig.path.write_text("1 end")
    stamp = Stamp.of(rig.path)
    rig.rename_over("2 end")
    watch = rig.watch(loaded=stamp)
    watch.start()
    await until(lambda: rig.good == ["2 end"])
    await watch.stop()


async def test_a_file_written_in_place_is_live(rig: Rig) -> None:
    async with rig.watching():
        rig.path.write_text("two end")
        await until(lambda: rig.good == ["two end"])


async def test_a_file_renamed_over_is_live_though_size_and_time_are_the_same(rig: Rig) -> None:
    async with rig.watching():
        old = rig.path.stat()
        new = rig.path.with_suffix(".new")
        new.write_text("2 end")
        os.utime(new, ns=(old.st_atime_ns, old.st_mtime_ns))
        new.replace(rig.path)
        await until(lambda: rig.good == ["2 end"])


async def test_a_swapped_symlink_of_a_folder_is_live(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: config → ..data/config, ..data → a folder for each version."""
    for version in "12":
        (tmp_path / version).mkdir()
        (tmp_path / version / "config").write_text(f"{version} end")
    (tmp_path / "..data").symlink_to("1")
    rig = Rig(tmp_path)
    rig.path.symlink_to("..data/config")
    watch = rig.watch(loaded=Stamp.of(rig.path))
    watch.start()
    (tmp_path / "..data_new").symlink_to("2")
    (tmp_path / "..data_new").replace(tmp_path / "..data")
    await until(lambda: rig.good == ["2 end"])
    await watch.stop()


async def test_a_bad_file_is_told_once_and_then_the_good_one(rig: Rig) -> None:
    async with rig.watching():
        rig.rename_over("2")
        await until(lambda: rig.bad)
        await some_looks()
        rig.path.touch()
        await some_looks()
        rig.rename_over("2")
        await some_looks()
        assert rig.bad == ["no end: 2"]
        rig.rename_over("3")
        await until(lambda: len(rig.bad) == 2)
        rig.rename_over("4 end")
        await until(lambda: rig.good == ["4 end"])
    assert rig.bad == ["no end: 2", "no end: 3"]


async def test_the_same_content_written_again_is_not_told(rig: Rig) -> None:
    async with rig.watching():
        rig.rename_over("2 end")
        await until(lambda: rig.good)
        rig.rename_over("2 end")
        await some_looks()
    assert (rig.good, rig.loads) == (["2 end"], 1)


async def test_going_back_to_what_was_in_use_is_told_after_a_bad_file(rig: Rig) -> None:
    async with rig.watching():
        rig.rename_over("2 end")
        await until(lambda: rig.good)
        rig.rename_over("bad")
        await until(lambda: rig.bad)
        rig.rename_over("2 end")
        await until(lambda: rig.good == ["2 end", "2 end"])


async def test_half_a_file_is_not_read_while_it_is_being_written(rig: Rig) -> None:
    async with rig.watching():
        with rig.path.open("w") as file:
            for part in range(100):
                file.write(f"{part} end")  # each state of it would be good
                file.flush()
                await asyncio.sleep(QUICK_S / 4)
        await until(lambda: rig.good)
    # A slow machine may once stand still for the writer and not for the watch.
    assert rig.good[-1].endswith("99 end")
    assert len(rig.good) <= 5


async def test_what_is_bad_because_it_changed_while_it_was_read_is_not_told(rig: Rig) -> None:
    async with rig.watching():
        rig.during_load = lambda: rig.rename_over("3 end")
        rig.rename_over("half")
        await until(lambda: rig.loads)
        rig.during_load = lambda: None
        await until(lambda: rig.good == ["3 end"])
    assert rig.bad == []


async def test_what_is_good_but_changed_while_it_was_read_is_read_again(rig: Rig) -> None:
    async with rig.watching():
        rig.during_load = lambda: rig.rename_over("3 end")
        rig.rename_over("1 of 3 end")
        await until(lambda: rig.loads)
        rig.during_load = lambda: None
        await until(lambda: rig.good)
    assert rig.good == ["3 end"]


async def test_a_file_that_changes_in_every_reading_is_live_all_the_same(rig: Rig) -> None:
    rig.during_load = lambda: rig.rename_over(f"{rig.loads} end")
    async with rig.watching(settle_s=0):
        rig.rename_over("bad")
        await until(lambda: len(rig.good) > 2)
    assert rig.bad == []


async def test_a_second_change_within_a_tick_of_the_file_systems_clock_is_seen(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even after a reading in a hurry. The stamps here tell nothing but the size."""
    monkeypatch.setattr(Stamp, "of", lambda path: Stamp(0, 0, path.stat().st_size, 0, 0))
    async with rig.watching(settle_s=0):
        rig.during_load = lambda: rig.rename_over("third end")
        rig.rename_over("other end")
        await until(lambda: rig.good == ["other end", "third end"])


def test_two_files_have_two_stamps_whatever_their_times_are(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    assert Stamp.of(tmp_path / "a").inode != Stamp.of(tmp_path / "b").inode


async def test_a_file_that_never_stands_still_is_live_all_the_same(rig: Rig) -> None:
    """Each look finds a change; half a second of them by the watch's clock is enough."""
    async with rig.watching(settle_s=0.5):
        for number in range(2, 500):
            rig.rename_over(f"{number} end")
            rig.clock.now += 0.01
            await asyncio.sleep(0.001)
            if rig.good:
                break
        assert rig.good
        rig.rename_over("last end")
        await until(lambda: rig.good[-1] == "last end")


async def test_200_rapid_edits_end_with_the_last_one_and_few_readings(rig: Rig) -> None:
    async with rig.watching():
        for number in range(200):
            text = f"{number} end" if number % 3 else f"{number}"
            (rig.rename_over if number % 2 else rig.path.write_text)(text)
            if number % 10 == 0:
                await asyncio.sleep(0.001)
        await until(lambda: rig.good and rig.good[-1] == "199 end")
        await some_looks()
    assert rig.good[-1] == "199 end"
    assert rig.loads <= 20


async def test_a_file_away_for_a_moment_is_no_fault(rig: Rig) -> None:
    async with rig.watching():
        rig.path.unlink()
        await some_looks()
        rig.clock.now += 1.9
        await some_looks()
        rig.path.write_text("2 end")
        await until(lambda: rig.good == ["2 end"])
        rig.path.unlink()  # counted anew
        await some_looks()
        rig.clock.now += 1.9
        await some_looks()
    assert rig.bad == []


async def test_a_file_away_for_longer_is_told_once_and_its_return_too(rig: Rig) -> None:
    async with rig.watching():
        rig.rename_over("2 end")
        await until(lambda: rig.good)
        away = rig.path.rename(rig.path.with_suffix(".away"))
        await some_looks()
        rig.clock.now += 2.1
        await until(lambda: rig.bad)
        rig.clock.now += 100
        await some_looks()
        assert rig.bad == ["cannot be read: No such file or directory"]
        away.rename(rig.path)
        await until(lambda: rig.good == ["2 end", "2 end"])


async def test_a_pipe_or_a_folder_is_told_and_hangs_nothing(rig: Rig) -> None:
    async with rig.watching():
        rig.path.unlink()
        os.mkfifo(rig.path)
        await some_looks()
        rig.clock.now += 2.1
        await until(lambda: rig.bad == ["cannot be read: not a regular file"])
        rig.path.unlink()
        rig.path.mkdir()
        await some_looks()
        rig.path.rmdir()
        rig.path.write_text("2 end")
        await until(lambda: rig.good == ["2 end"])
    assert len(rig.bad) == 1


async def test_the_command_reads_at_once_and_tells_even_what_is_known(rig: Rig) -> None:
    rig.path.write_text("1 end")
    watch = FileWatch(rig.path, rig.load, rig.take, lambda error: rig.bad.append(str(error)), interval_s=60)
    watch.start()
    watch.reload_now()
    await until(lambda: rig.good == ["1 end"])
    watch.reload_now()
    await until(lambda: rig.good == ["1 end", "1 end"])
    rig.path.unlink()
    watch.reload_now()
    await until(lambda: len(rig.bad) == 1)
    rig.path.write_text("1")
    watch.reload_now()
    await until(lambda: len(rig.bad) == 2)
    await watch.stop()


async def test_a_forced_reading_is_followed_by_no_second_telling(rig: Rig) -> None:
    async with rig.watching() as watch:
        rig.rename_over("2 end")
        watch.reload_now()
        await until(lambda: rig.good)
        await some_looks()
    assert rig.good == ["2 end"]


async def test_a_value_that_is_refused_is_bad_once(rig: Rig) -> None:
    rig.refuse.add("2 end")
    async with rig.watching():
        rig.rename_over("2 end")
        await until(lambda: rig.bad)
        await some_looks()
        rig.rename_over("3 end")
        await until(lambda: rig.good == ["3 end"])
    assert rig.bad == ["refused"]


async def test_a_slow_load_holds_up_neither_the_loop_nor_stopping(rig: Rig) -> None:
    release = threading.Event()
    rig.during_load = lambda: assert_released(release)
    async with rig.watching(), asyncio.timeout(3):
        rig.rename_over("2 end")
        await until(lambda: rig.loads)
    release.set()
    await some_looks()
    assert rig.good == []
    assert threading.current_thread().name not in rig.threads


def assert_released(release: threading.Event) -> None:
    assert release.wait(10)


async def test_a_stopped_watch_reads_no_more(rig: Rig) -> None:
    async with asyncio.timeout(5):
        async with rig.watching():
            rig.rename_over("2 end")
            await until(lambda: rig.good == ["2 end"])
    loads = rig.loads
    rig.rename_over("3 end")
    await some_looks()
    assert rig.loads == loads


async def test_it_is_live_within_two_seconds_at_the_usual_pace(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text("1")
    good: list[str] = []
    bad: list[ConfigError] = []
    watch = FileWatch(path, Path.read_text, good.append, bad.append, loaded=Stamp.of(path))
    watch.start()
    await asyncio.sleep(0.01)
    path.write_text("2")
    await until(lambda: good == ["2"], within_s=2)
    await watch.stop()


async def test_a_fault_of_the_program_is_logged(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise LookupError

    rig.during_load = fail
    async with rig.watching():
        rig.rename_over("2 end")
        await until(lambda: caplog.records)
    assert caplog.records[0].levelno == logging.ERROR


async def test_a_fault_in_taking_a_value_is_logged_once_and_the_next_one_is_taken(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.broken = {"2 end"}
    async with rig.watching():
        rig.rename_over("2 end")
        await until(lambda: caplog.records)
        await some_looks()
        rig.rename_over("3 end")
        await until(lambda: rig.good)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert rig.good == ["3 end"]
