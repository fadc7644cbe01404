"""A PostgreSQL server of the bench's own: its commits are on the disk (`fsync` is on), and it ends with the bench."""

import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from servers import Wrong

VERSION_MIN = 15
# A server whose clients are many and whose memory is not the question.
SETTINGS = """
listen_addresses = '127.0.0.1'
max_connections = 100
shared_buffers = 256MB
max_wal_size = 4GB
stats_fetch_consistency = none
"""
COUNTING = """
shared_preload_libraries = 'pg_stat_statements'
pg_stat_statements.max = 10000
pg_stat_statements.track_utility = on
"""


def programs():
    """The folder with PostgreSQL's programs, the newest there is."""
    debian = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    named = [os.environ["TOLLGATE_TEST_POSTGRES"]] if "TOLLGATE_TEST_POSTGRES" in os.environ else []
    on_path = [pathlib.Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    for folder in map(pathlib.Path, [*named, *on_path, *debian]):
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise Wrong(f"there is no PostgreSQL {VERSION_MIN} or later in TOLLGATE_TEST_POSTGRES, PATH or /usr/lib/postgresql")


def user():
    """Who runs it. Root may not."""
    if os.geteuid() != 0:
        return []
    for name in ("postgres", "nobody"):
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return ["setpriv", f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}", "--clear-groups"]
    raise Wrong("there is neither a user `postgres` nor `nobody` to run PostgreSQL as")


class Postgres:
    """A server on a free port, with one database and its owner."""

    def __init__(self, log, cleanup):
        self.folder, self.user, self.log = programs(), user(), log
        # Not in the folder of the bench, which is closed to others.
        home = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-bench-postgres-"))
        self.home = pathlib.Path(home)
        self.data = self.home / "data"
        if self.user:
            shutil.chown(home, *(int(word.split("=")[1]) for word in self.user[1:3]))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "--pgdata", self.data, "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale")
        can_count = (self.folder.parent / "lib" / "pg_stat_statements.so").exists()
        with open(self.data / "postgresql.conf", "a", encoding="ascii") as settings:
            settings.write(SETTINGS + f"port = {self.port}\nunix_socket_directories = '{self.home}'\n"
                           + (COUNTING if can_count else ""))
        self.start()
        cleanup.callback(self.stop)
        self.sql("CREATE ROLE tollgate LOGIN")
        self.sql("CREATE DATABASE tollgate OWNER tollgate")
        if can_count:
            self.sql("CREATE EXTENSION pg_stat_statements")
        self.can_count = can_count
        self.version = self.sql("SELECT current_setting('server_version')")

    def _run(self, program, *arguments, tries=1):
        for left in reversed(range(tries)):
            done = subprocess.run([*self.user, self.folder / program, *arguments], stdout=self.log, stderr=self.log, check=False)
            if done.returncode == 0:
                return
            if left:
                time.sleep(0.01)
        raise Wrong(f"`{program}` ended with {done.returncode}; --log FILE keeps what it says")

    def start(self):
        """Starts it, and waits until it takes connections."""
        self.process = subprocess.Popen([*self.user, self.folder / "postgres", "-D", self.data], stdout=self.log, stderr=self.log)
        self._run("pg_isready", "--host=127.0.0.1", f"--port={self.port}", tries=1000)

    def sql(self, text):
        """As a superuser, from another database than the servers'."""
        done = subprocess.run([self.folder / "psql", "--no-psqlrc", "--tuples-only", "--no-align", "--quiet", "--host=127.0.0.1",
                               f"--port={self.port}", "--username=postgres", "--dbname=postgres", "--command", text],
                              capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Wrong(f"psql: {done.stderr.strip()[-500:]}")
        return done.stdout.strip()

    def url(self):
        return f"postgres://tollgate@127.0.0.1:{self.port}/tollgate"

    def statements(self):
        """How often each statement has run in the servers' database, BEGIN and COMMIT included, since the server's start."""
        if not self.can_count:
            return None
        rows = self.sql("SELECT s.calls, regexp_replace(s.query, '\\s+', ' ', 'g') FROM pg_stat_statements AS s "
                        "JOIN pg_database AS d ON d.oid = s.dbid WHERE d.datname = 'tollgate'")
        found = {}
        for row in rows.splitlines():
            calls, _, text = row.partition("|")
            found[text] = found.get(text, 0) + int(calls)
        return found

    def stop(self):
        if self.process.poll() is None:
            # Setpriv has become the server. Fast: clients are thrown out.
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
