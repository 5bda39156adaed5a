"""What is said to ssh, what it says, and what both ends write about each other."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from comms import ssh_keys
from comms.ssh_causes import CAUSES, cause_of, why
from comms.ssh_client import ALIAS, KNOWN_HOSTS, Destination, check_installed, client_argv
from user_system.core.errors import ConfigError, LinkError, MissingError, SecurityError

ENDPOINTS = ["127.0.0.1:7400", "127.0.0.1:7402"]

# As OpenSSH 9.2 and 10.0 print them, with CR at the end of some.
SAID = {
    "host key": "No ED25519 host key is known for user-system-head and you have requested strict "
    "checking.\nHost key verification failed.",
    "forwarding prohibited": "channel 2: open failed: administratively prohibited: open failed",
    "service not there": "channel 3: open failed: connect failed: Connection refused",
    "permission denied": "lab@192.0.2.1: Permission denied (publickey).\r",
    "own key": "@ WARNING: UNPROTECTED PRIVATE KEY FILE! @\nLoad key \"k\": bad permissions\n"
    "lab@192.0.2.1: Permission denied (publickey).",
    "name": "ssh: Could not resolve hostname head.invalid: Name or service not known\r",
    "refused": "ssh: connect to host 192.0.2.1 port 22: Connection refused\r",
    "timed out": "ssh: connect to host 192.0.2.1 port 22: Connection timed out\r",
    "unreachable": "ssh: connect to host 192.0.2.1 port 22: Network is unreachable\r",
    "no common algorithm": "Unable to negotiate with 192.0.2.1 port 22: no matching key exchange "
    "method found. Their offer: diffie-hellman-group1-sha1",
    "local socket": "unix_listener: cannot bind to path /tmp/x: No such file or directory\n"
    "Could not request local forwarding.",
    "no user": "No user exists for uid 4711",
    "hung up": "kex_exchange_identification: Connection closed by remote host\r\n"
    "Connection closed by 192.0.2.1 port 22",
}  # fmt: skip


def test_every_cause_has_an_example() -> None:
    assert set(SAID) == {cause.name for cause in CAUSES}


@pytest.mark.parametrize("name", SAID)
def test_what_ssh_says_is_a_cause_with_a_next_step(name: str) -> None:
    cause, line = why(["Warning: something harmless", *SAID[name].splitlines(), ""])
    assert cause.name == name
    assert line in SAID[name]
    error = cause.error(line)
    assert line.strip() in error.got
    assert error.todo
    assert isinstance(error, SecurityError if cause.refusal else LinkError)


@pytest.mark.parametrize(
    "line",
    [
        "Connection to 192.0.2.1 port 22 timed out",
        "Timeout, server 192.0.2.1 not responding.",
        "ssh: connect to host 192.0.2.1 port 22: Operation timed out",
        "Connection timed out during banner exchange",
    ],
)
def test_ways_to_time_out_are_one_cause(line: str) -> None:
    cause = cause_of(line)
    assert cause is not None
    assert cause.name == "timed out"


def test_a_changed_host_key_is_one_whatever_follows() -> None:
    said = [
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
        "Host key for user-system-head has changed and you have requested strict checking.",
        "Host key verification failed.",
        "Connection closed by 192.0.2.1 port 22",
    ]
    cause, _ = why(said)
    assert (cause.name, cause.lasting, cause.refusal) == ("host key", True, True)


def test_silence_and_strange_words_are_told_as_they_are() -> None:
    assert why([])[0].name == why(["gibberish"])[0].name == "unknown"
    assert "gibberish" in str(why(["gibberish"])[0].error("gibberish"))


# --- the command line ---------------------------------------------------


def test_ssh_itself_understands_the_command_line(tmp_path: Path) -> None:
    """``ssh -G`` says what a command line comes to, defaults and quoting included."""
    if shutil.which("ssh") is None:
        pytest.skip("ssh is not installed")
    pki = tmp_path / "with space & 100%"
    pki.mkdir()
    forwards = {tmp_path / "hub": ENDPOINTS[0], tmp_path / "fresh": ENDPOINTS[1]}
    argv = client_argv(Destination("lab", "head.example.org", 2222), pki, forwards, "lowdelay")
    done = subprocess.run([argv[0], "-G", *argv[1:]], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    said = [line.split(None, 1) for line in done.stdout.splitlines()]
    found = {line[0]: line[1] for line in said if len(line) == 2}
    assert found["hostname"] == "head.example.org"
    assert (found["user"], found["port"]) == ("lab", "2222")
    for option, value in {
        "batchmode": ("yes",),
        "exitonforwardfailure": ("yes",),
        "stricthostkeychecking": ("true", "yes"),
        "identitiesonly": ("yes",),
        "identityagent": ("none",),
        "forwardagent": ("no",),
        "forwardx11": ("no",),
        "gatewayports": ("no",),
        "tunnel": ("false", "no"),
        "updatehostkeys": ("false", "no"),
        "hostkeyalias": (ALIAS,),
        "globalknownhostsfile": ("none",),
        "preferredauthentications": ("publickey",),
        "serveraliveinterval": ("2",),
        "ipqos": ("lowdelay lowdelay", "lowdelay"),
        "sessiontype": ("none",),
        "requesttty": ("false", "no"),
    }.items():
        assert found[option] in value, (option, found[option])
    assert found["userknownhostsfile"].strip('"') == str(pki / KNOWN_HOSTS)
    ways = [line[1] for line in said if line[0] == "localforward"]
    assert ways == [f"{path} [127.0.0.1]:{to[-4:]}" for path, to in forwards.items()]


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "-oProxyCommand=touch /tmp/x"},
        {"host": "head example"},
        {"host": ""},
        {"host": None},
        {"user": "-lroot"},
        {"user": "a b"},
        {"port": 0},
        {"port": 65536},
        {"port": True},
        {"port": "22"},
    ],
)
def test_nothing_that_looks_like_an_option_is_a_destination(wrong: dict[str, object]) -> None:
    given: dict[str, object] = {"user": "lab", "host": "head", "port": 22, **wrong}
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} "):
        Destination(**given)  # type: ignore[arg-type]


def test_a_machine_without_ssh_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="apt-get install openssh-client"):
        check_installed()


# --- keys ---------------------------------------------------


def test_a_key_is_made_once_kept_secret_and_read_by_openssh(tmp_path: Path) -> None:
    path = tmp_path / "pki" / "ssh.key"
    public = ssh_keys.make_key(path)
    assert ssh_keys.make_key(path) == public == ssh_keys.checked_key(public)
    assert path.stat().st_mode & 0o777 == 0o600
    if shutil.which("ssh-keygen"):
        done = subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True)
        assert done.stdout.split()[:2] == public.split()
    path.chmod(0o644)
    with pytest.raises(SecurityError, match="others can read"):
        ssh_keys.make_key(path)
    path.write_text("no key")
    path.chmod(0o600)
    with pytest.raises(SecurityError, match="no ssh key"):
        ssh_keys.make_key(path)


def keys(folder: Path, count: int) -> list[str]:
    return [ssh_keys.make_key(folder / f"{k}.key") for k in range(count)]


@pytest.mark.parametrize(
    "mangle",
    [
        lambda key: "",
        lambda key: None,
        lambda key: key.split()[0],
        lambda key: key.replace("ssh-ed25519", "ssh-rsa"),
        lambda key: f'command="sh" {key}',
        lambda key: key[:-8],
        lambda key: key[:20] + "\n" + key[20:],
        lambda key: "ssh-ed25519 " + base64.b64encode(b"\0" * 51).decode(),
        lambda key: key + "A" * 2000,
    ],
)
def test_what_is_no_key_gets_no_line(tmp_path: Path, mangle: object) -> None:
    key = keys(tmp_path, 1)[0]
    with pytest.raises(SecurityError, match="not the public ssh key"):
        ssh_keys.authorized_line("arm-1", mangle(key), ENDPOINTS)  # type: ignore[operator]


def test_a_comment_that_would_be_a_second_line_is_dropped(tmp_path: Path) -> None:
    key = keys(tmp_path, 1)[0]
    line = ssh_keys.authorized_line("arm-1", f"{key} x\nssh-ed25519 AAAA evil", ENDPOINTS)
    assert line == ssh_keys.authorized_line("arm-1", key, ENDPOINTS)
    assert "\n" not in line
    assert "evil" not in line


def test_a_line_gives_ways_to_the_endpoints_and_nothing_else(tmp_path: Path) -> None:
    key = keys(tmp_path, 1)[0]
    options, *rest = ssh_keys.authorized_line("arm-1", key, ENDPOINTS).split(" ")
    assert rest == [*key.split(), "user-system:arm-1"]
    assert options.split(",") == [
        "restrict",
        "port-forwarding",
        'command="/bin/false"',
        'permitopen="127.0.0.1:7400"',
        'permitopen="127.0.0.1:7402"',
        'permitlisten="127.0.0.1:1"',
    ]


def test_lines_come_are_replaced_and_go(tmp_path: Path) -> None:
    first, second, third = keys(tmp_path, 3)
    path = tmp_path / "authorized_keys"
    path.write_text("ssh-ed25519 AAAAforeign somebody@else\n")
    ssh_keys.authorize(path, "arm-1", first, ENDPOINTS)
    ssh_keys.authorize(path, "arm-2", second, ENDPOINTS)
    ssh_keys.authorize(path, "arm-1", third, ENDPOINTS)
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(path) == ["somebody@else", "user-system:arm-2", "user-system:arm-1"]
    assert first.split()[1] not in path.read_text()
    with pytest.raises(SecurityError, match="another host's; got arm-2"):
        ssh_keys.authorize(path, "arm-3", second, ENDPOINTS)
    ssh_keys.deauthorize(path, "arm-1")
    ssh_keys.deauthorize(path, "arm-9")
    assert names(path) == ["somebody@else", "user-system:arm-2"]
    ssh_keys.deauthorize(tmp_path / "none", "arm-1")


def names(path: Path) -> list[str]:
    return [line.split()[-1] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["", "a b", 'x" y', "ca", "x\ny"])
def test_names_are_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(SecurityError, match="not a name"):
        ssh_keys.authorized_line(name, keys(tmp_path, 1)[0], ENDPOINTS)


def test_one_host_key_is_pinned(tmp_path: Path) -> None:
    key = keys(tmp_path, 1)[0]
    ssh_keys.pin(tmp_path, f"{key} root@head\n")
    assert (tmp_path / KNOWN_HOSTS).read_text() == f"{ALIAS} {key}\n"
    for wrong in ("", None, "ssh-ed25519", f"* {key}", "ssh-dss AAAA", "ssh-rsa AAAA"):
        with pytest.raises(SecurityError, match="host_key is no public host key"):
            ssh_keys.pin(tmp_path, wrong)  # type: ignore[arg-type]


def test_sshd_understands_its_configuration(tmp_path: Path) -> None:
    sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin")
    if sshd is None:
        pytest.skip("sshd is not installed")
    pki = tmp_path / "with space"
    ssh_keys.make_key(pki / ssh_keys.HOST_KEY)
    text = ssh_keys.sshd_config(pki, "lab", ENDPOINTS, listen="127.0.0.1", port=2222)
    (pki / "config").write_text(text)
    done = subprocess.run([sshd, "-T", "-f", pki / "config"], capture_output=True, text=True)
    if "privilege separation directory" in done.stderr:
        pytest.skip("sshd wants /run/sshd, which is missing")
    assert done.returncode == 0, done.stderr
    found = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert found["allowtcpforwarding"] == "local"
    assert found["allowstreamlocalforwarding"] == "no"
    assert found["permitopen"] == " ".join(ENDPOINTS)
    assert found["permitlisten"] == "none"
    assert found["maxsessions"] == "0"
    for name in ("passwordauthentication", "permittty", "x11forwarding", "permittunnel"):
        assert found[name] == "no"
