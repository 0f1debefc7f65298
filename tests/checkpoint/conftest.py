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
