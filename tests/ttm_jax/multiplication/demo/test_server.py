"""The page as it is served by the command, to any client."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

import ttm_jax


def get(address, **headers):
    """Status and text."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_page(address):
    status, page = get(address)
    assert status == 200
    assert "<title>A Token Turing Machine multiplies</title>" in page
    assert '"trace": null' in page


def test_a_product(address, checkpoint):
    status, text = get(f"{address}multiply?problem=12*34")
    assert status == 200
    answer = json.loads(text)
    assert answer["problem"] == "12 × 34"
    assert answer["answer"] == ttm_jax.load(checkpoint).multiply([12], [34])[0]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "nothing to multiply; type a product such as 123*45"),
        ("?problem=", "nothing to multiply; type a product such as 123*45"),
        ("?problem=hello", "'hello' is no product: type two numbers from 0 to 99999, such as 123*45"),
        ("?problem=123456*2", "123456 has 6 digits, too many: the numbers are from 0 to 99999"),
    ],
)
def test_what_is_no_product_is_the_command_s_line(query, message, address):
    status, text = get(f"{address}multiply{query}")
    assert status == 400
    assert json.loads(text) == {"error": message}


def test_only_this_machine_s_names_are_answered(address):
    assert get(address, Host="evil.example")[0] == 400
    assert get(address, Host="localhost")[0] == 200
    assert get(f"{address}nothing")[0] == 404


def test_ctrl_c_ends_it_and_a_taken_port_is_said(environment, serving, checkpoint):
    with serving("12*34") as (process, address):
        assert address.endswith("/?problem=12%2A34")
        port = address.split(":")[2].split("/")[0]
        command = [sys.executable, "-m", "ttm_jax.demo", "--page", "--port", port, "--checkpoint", str(checkpoint)]
        second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert second.returncode == 2
        assert second.stderr == (
            f"python -m ttm_jax.demo: error: --port {port}: Address already in use; leave it out for a free one\n"
        )
        assert get(address)[0] == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")
