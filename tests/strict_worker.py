"""Indexes and invokes an app with azure-functions-runtime, Microsoft's own worker library (Python 3.13 or newer).

Run as a script: `strict_worker.py FOLDER`. The library takes its protobuf classes from its host, so plain stand-ins do.
"""

from __future__ import annotations

import asyncio
import json
import sys
from types import SimpleNamespace

KINDS = ("string", "json", "bytes", "http", "int", "double")


class Message:
    """A stand-in protobuf message: keeps what it was given."""

    def __init__(self, **fields):
        self.__dict__.update(fields)

    def WhichOneof(self, _):  # noqa: N802  protobuf's name
        return "data" if "data" in self.__dict__ else next((kind for kind in KINDS if kind in self.__dict__), None)

    def HasField(self, name):  # noqa: N802  protobuf's name
        return name in self.__dict__


class StatusResult(Message):
    Failure, Success, Cancelled = 0, 1, 2


class BindingInfo(Message):
    in_, out, inout, undefined = 0, 1, 2, 0


class RpcHttpCookie(Message):
    SameSite = SimpleNamespace(**{"None": 0, "Lax": 1, "Strict": 2, "ExplicitNone": 3})


PLAIN = (
    "WorkerInitResponse WorkerMetadata FunctionMetadataResponse FunctionLoadResponse InvocationResponse TypedData RpcHttp "
    "RpcException RpcFunctionMetadata RpcRetryOptions ParameterBinding NullableString NullableBool NullableDouble "
    "NullableTimestamp FunctionEnvironmentReloadResponse"
)
PROTOS = SimpleNamespace(
    StatusResult=StatusResult,
    BindingInfo=BindingInfo,
    RpcHttpCookie=RpcHttpCookie,
    **{name: type(name, (Message,), {}) for name in PLAIN.split()},
)


class Worker:
    """The library with one app loaded."""

    async def load(self, folder):
        sys.path.insert(0, folder)
        import azure_functions_runtime  # noqa: PLC0415  only on 3.13

        self.library = azure_functions_runtime
        self.library.start_threadpool_executor()
        request = Message(
            request=Message(worker_init_request=Message(capabilities={}, function_app_directory=folder)),
            properties={"host": "127.0.0.1", "protos": PROTOS},
        )
        answer = await self.library.worker_init_request(request)
        if answer.result.status != StatusResult.Success:
            raise SystemExit(answer.result.exception.message)
        answer = await self.library.functions_metadata_request(request)
        if answer.result.status != StatusResult.Success:
            raise SystemExit(answer.result.exception.message)
        self.functions = {one.name: one for one in answer.function_metadata_results}

    async def invoke(self, name, **data):
        bindings = [Message(name=key, data=Message(**value)) for key, value in data.items()]
        request = Message(
            invocation_id="1",
            function_id=self.functions[name].function_id,
            input_data=bindings,
            trigger_metadata={},
            trace_context=Message(trace_parent="", trace_state="", attributes={}),
            retry_context=Message(retry_count=0, max_retry_count=0, exception=None),
        )
        answer = await self.library.invocation_request(Message(request=Message(invocation_request=request), properties={}))
        if answer.result.status != StatusResult.Success:
            raise SystemExit(f"{name}: {answer.result.exception.message}")
        return answer.return_value


async def main(folder):
    worker = Worker()
    await worker.load(folder)
    print(f"indexed {len(worker.functions)} functions on {sys.version.split()[0]}")

    stamp = {"EventId": -1, "IsPlayed": False, "Timestamp": "2026-01-01T00:00:00Z"}
    context = {
        "history": [{"EventType": 12, **stamp}, {"EventType": 0, "Name": "backup_disk", "Version": "", **stamp}],
        "input": {"disk": "vm", "run": "vm.20260101T000000Z.timer", "trigger": "timer"},
        "instanceId": "vm.20260101T000000Z.timer", "isReplaying": False, "parentInstanceId": None,
        "upperSchemaVersion": 1, "upperSchemaVersionNew": 2,
        "longRunningTimerIntervalDuration": "3.00:00:00", "maximumShortTimerDuration": "6.00:00:00",
    }  # fmt: skip
    answer = await worker.invoke("backup_disk", context={"string": json.dumps(context)})
    actions = json.loads(getattr(answer, "json", None) or answer.string)["actions"][0]
    first = actions[0].get("functionName") or actions[0]["compoundActions"][0]["functionName"]
    print(f"orchestrator answered: {first}")

    actor = {"disk": "strict", "run": "strict.20260101T000000Z.timer", "lease": "x", "epoch": 1, "source": "x"}
    answer = await worker.invoke("take_source_snapshot", request={"string": json.dumps({"actor": actor})})
    print(f"activity answered: fault {json.loads(getattr(answer, 'json', None) or answer.string)['fault']['code']}")

    request = Message(
        method="GET",
        url="http://127.0.0.1/api/disks/strict",
        headers={},
        body=Message(bytes=b""),
        params={"disk": "strict"},
        query={},
    )
    answer = await worker.invoke("get_disk", req={"http": request})
    print(f"http answered: {answer.http.status_code}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
