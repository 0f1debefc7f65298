"""Fixtures of the checkpoint tests."""

import socket

import pytest
from checkpoint.files_for_tests import X, net


@pytest.fixture
def saved():
    model = net()
    model(X)  # running statistics that are not the initial ones
    return model.eval()


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("no connection may be tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(autouse=True)
def not_tried(request, monkeypatch):
    """TorchScript programs of these tests are not run in a process of their own first, except in its own test."""
    if request.path.name != "test_first_run.py":
        monkeypatch.setattr("hvpspec.checkpoint.formats.torchscript.script.try_before_use", lambda *_: None)
