"""Jobs, images and settings on the disk: SQLite (WAL) next to the image files.

    studio.db              the tables `jobs`, `images` and `settings`
    images/ID.png          each with its request inside
    inputs/ID.png          input images; the id is the start of the SHA-256 of the pixels
    steps/ID.safetensors   the latents predicted in each step of an image
    attention/ID.json      attention maps · thumbnails/ID.webp · queue/ID.json, the jobs that are not finished

A file is written before the row that names it, so whatever moment the process ends at, each row has its file. At the start, rows and
files are compared: an image without a row gets one from the metadata in it. A damaged database is kept under another name and made
again from the files.
"""

import fcntl
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from daguerre.atomic_io import atomic_write
from daguerre.errors import DaguerreError
from daguerre.server.errors import ApiError
from daguerre.server.jobs.job import FINISHED, Job
from daguerre.server.storage.image_records import ImageRecord, record_of_file

T = TypeVar("T")
FOLDERS = ("images", "inputs", "steps", "attention", "thumbnails", "queue")
BUSY_SECONDS = 5.0  # that SQLite waits for another process
KEPT_SECONDS = 30 * 24 * 3600.0  # that a deleted image can be restored
KEPT_STEPS = 500  # images whose steps are kept
KEPT_JOBS = 1000  # finished jobs that are listed

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, state TEXT NOT NULL, finished REAL, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, finished);
CREATE TABLE IF NOT EXISTS images (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, model TEXT NOT NULL, task TEXT NOT NULL, words TEXT NOT NULL,
    favourite INTEGER NOT NULL DEFAULT 0, deleted REAL, body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Store:
    """The data of one server. All methods may be called from any thread; one connection is used, behind a lock.

    notes: what was repaired at the start, for the log and the page.

    Raises:
        DaguerreError: the folder cannot be written, or another server uses it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, []
        try:
            for name in FOLDERS:
                (folder / name).mkdir(parents=True, exist_ok=True)
            self._lock_file = (folder / "lock").open("w")
        except OSError as error:
            raise DaguerreError(f"Cannot write to '{folder}': {error.strerror or error}. Choose another folder with --data-dir.") from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.close()
            raise DaguerreError(f"Another server uses '{folder}'. Stop it, or choose another folder with --data-dir.") from error
        self._lock = threading.RLock()
        try:
            self._connection = self._open()
            self._reconcile()
        except sqlite3.OperationalError as error:
            self._lock_file.close()
            raise DaguerreError(f"The database in '{folder}' cannot be opened: {error}. Close the program that uses it.") from error

    def close(self) -> None:
        """Close the database. The store cannot be used afterwards."""
        with self._lock:
            self._connection.close()
            self._lock_file.close()

    def path(self, kind: str, name: str) -> Path:
        """The file of an id; `kind` is a folder of `FOLDERS`."""
        suffix = {"steps": ".safetensors", "attention": ".json", "thumbnails": ".webp", "queue": ".json"}.get(kind, ".png")
        return self.folder / kind / f"{name}{suffix}"

    # jobs

    def save_job(self, job: Job) -> None:
        """Insert or replace a job. Until it is finished a file holds it, too, in case the database is lost."""
        file = self.path("queue", job.id)
        if not job.is_finished and not file.exists():
            with atomic_write(file) as out:
                out.write(json.dumps(job.stored()).encode())
        with self._transaction() as run:
            _write_job(run, job)
        if job.is_finished:
            file.unlink(missing_ok=True)

    def save_images(self, job: Job, images: Iterable[ImageRecord]) -> None:
        """Insert images, whose files exist, together with their job's new state."""
        with self._transaction() as run:
            for image in images:
                _write_image(run, image)
            _write_job(run, job)
        if job.is_finished:
            self.path("queue", job.id).unlink(missing_ok=True)

    def job(self, job_id: str) -> Job | None:
        """A job by its id; None if there is none."""
        rows = self._read("SELECT body FROM jobs WHERE id = ?", job_id)
        return Job.from_stored(json.loads(rows[0][0])) if rows else None

    def pending_jobs(self) -> list[Job]:
        """The jobs that are not finished, in the order of the queue."""
        jobs = [Job.from_stored(json.loads(body)) for (body,) in self._read("SELECT body FROM jobs WHERE state IN ('queued', 'running')")]
        return sorted(jobs, key=lambda job: (job.state != "running", job.rank, job.created))

    def finished_jobs(self, limit: int) -> list[Job]:
        """The latest finished jobs, newest first."""
        rows = self._read("SELECT body FROM jobs WHERE state NOT IN ('queued', 'running') ORDER BY finished DESC LIMIT ?", limit)
        return [Job.from_stored(json.loads(body)) for (body,) in rows]

    # images

    def image(self, image_id: str) -> ImageRecord | None:
        """An image's record by its id, also of a deleted image; None if there is none."""
        rows = self._read("SELECT body, favourite, deleted FROM images WHERE id = ?", image_id)
        return _image_of_row(rows[0]) if rows else None

    def images(
        self,
        *,
        limit: int = 100,
        before: int | None = None,
        search: str = "",
        model: str | None = None,
        task: str | None = None,
        favourite: bool = False,
        deleted: bool = False,
    ) -> tuple[list[ImageRecord], int | None, int]:
        """Images, newest first: (images, the `before` of the next page or None, how many match in all).

        search: words that all occur in the prompts, the model's name or the seed.
        """
        conditions = ["deleted IS NOT NULL" if deleted else "deleted IS NULL"]
        values: list[Any] = []
        for word in search.lower().split():
            conditions.append("words LIKE ? ESCAPE '\\'")
            values.append(f"%{_escaped(word)}%")
        for name, value in (("model", model), ("task", task)):
            if value is not None:
                conditions.append(f"{name} = ?")
                values.append(value)
        if favourite:
            conditions.append("favourite = 1")
        where = " AND ".join(conditions)
        ((total,),) = self._read(f"SELECT count(*) FROM images WHERE {where}", *values)
        page, place = (" AND number < ?", [before]) if before is not None else ("", [])
        rows = self._read(
            f"SELECT body, favourite, deleted, number FROM images WHERE {where}{page} ORDER BY number DESC LIMIT ?",
            *values,
            *place,
            limit + 1,
        )
        after = rows[limit - 1][3] if len(rows) > limit else None
        return [_image_of_row(row[:3]) for row in rows[:limit]], after, total

    def set_favourite(self, image_id: str, favourite: bool) -> None:
        """Mark an image, or remove the mark."""
        with self._transaction() as run:
            run("UPDATE images SET favourite = ? WHERE id = ?", (int(favourite), image_id))

    def set_deleted(self, image_ids: Sequence[str], deleted: bool) -> list[str]:
        """Delete images so that they can be restored, or restore them; returns the ids that changed."""
        changed = []
        with self._transaction() as run:
            for image_id in image_ids:
                if deleted:
                    cursor = run("UPDATE images SET deleted = ? WHERE id = ? AND deleted IS NULL", (time.time(), image_id))
                else:
                    cursor = run("UPDATE images SET deleted = NULL WHERE id = ? AND deleted IS NOT NULL", (image_id,))
                changed += [image_id] * cursor.rowcount
        return changed

    # settings

    def settings(self) -> dict[str, Any]:
        """All settings by key."""
        return {key: json.loads(value) for key, value in self._read("SELECT key, value FROM settings")}

    def save_settings(self, changes: Mapping[str, Any]) -> None:
        """Replace settings; None removes one."""
        with self._transaction() as run:
            for key, value in changes.items():
                if value is None:
                    run("DELETE FROM settings WHERE key = ?", (key,))
                else:
                    run("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, json.dumps(value)))

    def is_writable(self) -> bool:
        """Whether the database takes changes now."""
        try:
            with self._transaction() as run:
                run("DELETE FROM settings WHERE key = ''")
        except ApiError:
            return False
        return True

    def prune(self) -> None:
        """Remove what is not kept for ever: images deleted long ago, the steps of old images, old finished jobs."""
        old = [name for (name,) in self._read("SELECT id FROM images WHERE deleted < ?", time.time() - KEPT_SECONDS)]
        with self._transaction() as run:
            run("DELETE FROM images WHERE deleted < ?", (time.time() - KEPT_SECONDS,))
            run(
                "DELETE FROM jobs WHERE state NOT IN ('queued', 'running') AND id NOT IN "
                "(SELECT id FROM jobs WHERE state NOT IN ('queued', 'running') ORDER BY finished DESC LIMIT ?)",
                (KEPT_JOBS,),
            )
        for kind in ("images", "steps", "attention", "thumbnails"):
            for name in old:
                self.path(kind, name).unlink(missing_ok=True)
        steps = sorted((self.folder / "steps").glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        for file in steps[:-KEPT_STEPS]:
            file.unlink(missing_ok=True)

    # the database

    def _open(self) -> sqlite3.Connection:
        """Open the database; a damaged one is renamed, and a new one made."""
        path = self.folder / "studio.db"
        try:
            return _connect(path)
        except sqlite3.OperationalError:  # locked, or the disk is full: not damaged
            raise
        except sqlite3.DatabaseError as error:
            aside = f"studio.damaged-{time.strftime('%Y%m%d-%H%M%S')}.db"
            for suffix in ("", "-wal", "-shm"):
                if (damaged := path.with_name(f"studio.db{suffix}")).exists():
                    damaged.rename(path.with_name(f"{aside}{suffix}"))
            self.notes.append(f"The database was damaged ({error}). It is kept as {aside}; the gallery and the queue come from the files.")
            return _connect(path)

    def _reconcile(self) -> None:
        """Compare rows and files."""
        files = {file.stem: file for file in (self.folder / "images").glob("*.png")}
        known = {name for (name,) in self._read("SELECT id FROM images")}
        pending = {job.id for job in self.pending_jobs()}
        for file in sorted((self.folder / "queue").glob("*.json")):
            if file.stem not in pending:
                self._restore_job(file)
        pending = {job.id for job in self.pending_jobs()}
        missing = sorted(known - files.keys())
        added = sorted(files.keys() - known, key=lambda name: files[name].stat().st_mtime)
        with self._transaction() as run:
            for name in missing:
                run("DELETE FROM images WHERE id = ?", (name,))
            found = 0
            for name in added:
                if name.partition("-")[0] not in pending and (record := record_of_file(files[name])):  # a pending job writes it again
                    _write_image(run, record)
                    found += 1
        if missing:
            self.notes.append(f"{len(missing)} images are not listed any more, because their files are gone.")
        if found:
            self.notes.append(f"{found} images were added to the gallery from their files.")

    def _restore_job(self, file: Path) -> None:
        """A job that the database lacks, from its file; unless the database has it as finished."""
        try:
            job = Job.from_stored(json.loads(file.read_text()))
        except (ValueError, TypeError, KeyError):
            self.notes.append(f"The queued job in {file.name} cannot be read and is skipped.")
            return
        if (known := self.job(job.id)) is not None and known.state in FINISHED:
            file.unlink(missing_ok=True)
        else:
            with self._transaction() as run:
                _write_job(run, replace(job, state="queued"))

    def _read(self, query: str, *values: Any) -> list[Any]:
        return self._guarded(lambda: self._connection.execute(query, values).fetchall())

    @contextmanager
    def _transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """Yield the `execute` of a transaction, which is committed if the block ends without an error.

        Raises:
            ApiError: the disk is full, or the database is locked or damaged.
        """
        with self._lock:
            try:
                with self._connection:
                    self._connection.execute("BEGIN IMMEDIATE")
                    yield self._connection.execute
            except sqlite3.Error as error:
                raise _storage_error(error) from error

    def _guarded(self, work: Callable[[], T]) -> T:
        with self._lock:
            try:
                return work()
            except sqlite3.Error as error:
                raise _storage_error(error) from error


def _connect(path: Path) -> sqlite3.Connection:
    """Open a database and check it. Raises sqlite3.DatabaseError if it is damaged."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        ((result,), *_) = connection.execute("PRAGMA quick_check(1)").fetchall()
        if result != "ok":
            raise sqlite3.DatabaseError(result)
        connection.executescript(SCHEMA)
        connection.execute("SELECT id, state, finished, body FROM jobs LIMIT 1").fetchall()
        connection.execute("SELECT number, id, model, task, words, favourite, deleted, body FROM images LIMIT 1").fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _storage_error(error: sqlite3.Error) -> ApiError:
    text = str(error)
    if "full" in text:
        return ApiError(507, "The disk is full. Nothing was changed; free some space.", code="disk_full")
    if "locked" in text or "busy" in text:
        return ApiError(503, "Another program has locked the database. Nothing was changed.", code="database_locked", retry_after=5)
    return ApiError(500, f"The database cannot be used: {text}. Restart the server; it repairs it from the files.", code="database_error")


def _write_job(run: Callable[..., sqlite3.Cursor], job: Job) -> None:
    run("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?)", (job.id, job.state, job.finished, json.dumps(job.stored())))


def _write_image(run: Callable[..., sqlite3.Cursor], image: ImageRecord) -> None:
    """Insert an image, or replace what made it; its number, mark and deletion stay."""
    run(
        "INSERT INTO images (id, model, task, words, body) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
        "model = excluded.model, task = excluded.task, words = excluded.words, body = excluded.body",
        (image.id, image.model, image.task, image.words, json.dumps(image.stored())),
    )


def _image_of_row(row: Sequence[Any]) -> ImageRecord:
    body, favourite, deleted = row
    return ImageRecord(**{**json.loads(body), "favourite": bool(favourite), "deleted": deleted})


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
