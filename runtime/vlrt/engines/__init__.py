"""Engines: each turns a graph of a bundle into a `Session` on a device."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from vlrt.bundle import Bundle
from vlrt.engines.session import Array, EngineOptions, Session
from vlrt.errors import BundleError, EngineError

__all__ = ["Array", "EngineOptions", "Session", "Sessions", "open_session"]


def open_session(bundle: Bundle, role: str, options: EngineOptions) -> Session:
    """Loads one graph of a bundle on the device the options name.

    Raises:
        BundleError: the bundle lacks the graph, or its file is damaged.
        EngineError: the engine or device cannot be had; never falls back to another.
    """
    kind = options.device.partition(":")[0]
    if kind == "cuda":
        from vlrt.engines.cuda import open_cuda

        return open_cuda(bundle, role, options)
    if kind == "tensorrt":
        from vlrt.engines.tensorrt import open_tensorrt

        return open_tensorrt(bundle, role, options)
    if kind == "openvino":
        from vlrt.engines.openvino import OpenVinoSession

        return OpenVinoSession(*bundle.graph(role), options)
    from vlrt.engines.prepared import open_cached

    return open_cached(bundle, role, options)


def _import_engine(options: EngineOptions) -> None:
    """Imports what loads most graphs, before threads do: it would wait there for whatever the caller imports next."""
    if options.device == "cpu":
        from vlrt.engines.onnxruntime import load_library

        with contextlib.suppress(EngineError):  # said by the session that needs it
            load_library()


class Sessions:
    """The sessions of one bundle, each loaded once, in parallel where several are wanted at once."""

    def __init__(self, bundle: Bundle, options: EngineOptions | None = None) -> None:
        self.bundle = bundle
        self.options = options or EngineOptions()
        self._loading: dict[str, Future[Session]] = {}
        self._lock = threading.Lock()

    def prepare(self, roles: Iterable[str]) -> None:
        """Starts loading `roles` in the background; `get` waits for each."""
        wanted = list(dict.fromkeys(roles))
        with self._lock:
            wanted = [role for role in wanted if role not in self._loading]
            if not wanted:
                return
            _import_engine(self.options)
            pool = ThreadPoolExecutor(len(wanted), thread_name_prefix="vlrt-load")
            for role in wanted:
                self._loading[role] = pool.submit(open_session, self.bundle, role, self.options)
            pool.shutdown(wait=False)

    def get(self, role: str) -> Session:
        """The loaded session of `role`."""
        while True:
            self.prepare([role])
            loading = self._loading.get(role)
            if loading is not None:  # else another thread has released it in between
                return loading.result()

    def loaded(self) -> list[Session]:
        """The sessions that were asked for so far; waits for those still loading."""
        return [self.get(role) for role in list(self._loading)]

    def release(self, roles: Iterable[str]) -> None:
        """Forgets the sessions of `roles`; their memory goes back once nothing else holds them."""
        with self._lock:
            for role in roles:
                self._loading.pop(role, None)

    def run_chain(self, roles: Iterable[str], arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Runs graphs one after the other; each finds its inputs by name in `arrays` and in all earlier outputs.

        Returns:
            Outputs of all graphs of the chain by name.
        """
        roles = list(roles)
        self.prepare(roles)
        known = dict(arrays)
        produced: dict[str, Array] = {}
        for role in roles:
            session = self.get(role)
            missing = [t.name for t in session.spec.inputs if t.name not in known]
            if missing:
                raise BundleError(f"input `{missing[0]}` of the graph `{role}` comes from nowhere", "export it again")
            produced |= session.run(**{t.name: known[t.name] for t in session.spec.inputs})
            known |= produced
        return produced

    def end_profiles(self) -> list[Path]:
        """Stops profiling every loaded graph and returns the profiles' paths."""
        return [session.end_profile() for session in self.loaded()]
