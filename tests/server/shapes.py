"""What replies look like: the published APIs' schemas of the fields that we send, restated by us.

A shape is a type, a set of values, [shape] for a list, a dict for an object ("key?" may be missing,
no other keys are allowed), Any of shapes, or a function that says whether a value fits.
"""

import re


class Any:
    def __init__(self, *shapes):
        self.shapes = shapes


def number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def id_of(prefix):
    return lambda value: isinstance(value, str) and re.fullmatch(prefix + "[0-9a-f]{32}(_[0-9]+)?", value)


NULL = type(None)

USAGE = {"prompt_tokens": count, "completion_tokens": count, "total_tokens": count,
         "prompt_tokens_details": {"cached_tokens": count}, "completion_tokens_details": {"reasoning_tokens": count}}
TIMINGS = {"prompt_n": count, "prompt_ms": number, "predicted_n": count, "predicted_ms": number,
           "predicted_per_second": number}
METRICS = {"speculative_decoding": {"mean_acceptance_length": number, "acceptance_histogram": [count],
                                    "num_spec_steps": count, "num_draft_tokens": count,
                                    "num_accepted_draft_tokens": count}}
MEASURED = {"timings": TIMINGS, "metrics": METRICS}
TOKEN = {"token": str, "logprob": number, "bytes": [count]}
LOGPROBS = Any(NULL, {"content": [{**TOKEN, "top_logprobs": [TOKEN]}], "refusal": NULL})
FINISH = {"stop", "length", "tool_calls"}
CALL = {"index": count, "id": id_of("call_"), "type": {"function"}, "function": {"name": str, "arguments": str}}

CHAT = {
    "id": id_of("chatcmpl-"), "object": {"chat.completion"}, "created": count, "model": str, "usage": USAGE, **MEASURED,
    "choices": [{"index": count, "finish_reason": FINISH, "logprobs": LOGPROBS,
                 "message": {"role": {"assistant"}, "content": Any(str, NULL), "refusal": NULL,
                             "reasoning_content?": str, "tool_calls?": [CALL]}}],
}
SPECULATION = {"rounds": [{"drafts": {"drafter", "suffix", "forced", "none"}, "verified": count, "accepted": count}],
               "tokens": [{"text": str, "from": {"drafter", "suffix", "forced", "correction", "bonus", "model"}}]}
CHAT_CHUNK = {
    "id": id_of("chatcmpl-"), "object": {"chat.completion.chunk"}, "created": count, "model": str,
    "usage?": Any(NULL, USAGE), "timings?": TIMINGS, "metrics?": METRICS, "speculation?": SPECULATION,
    "choices": [{"index": count, "finish_reason": Any(NULL, FINISH), "logprobs?": LOGPROBS,
                 "delta": {"role?": {"assistant"}, "content?": str, "reasoning_content?": str,
                           "tool_calls?": [Any(CALL, {"index": count, "function": {"arguments": str}})]}}],
}
OLD_LOGPROBS = Any(NULL, {"tokens": [str], "token_logprobs": [number], "top_logprobs": [dict], "text_offset": [count]})
COMPLETION = {
    "id": id_of("cmpl-"), "object": {"text_completion"}, "created": count, "model": str, "usage": USAGE, **MEASURED,
    "choices": [{"index": count, "text": str, "logprobs": OLD_LOGPROBS, "finish_reason": {"stop", "length"}}],
}
COMPLETION_CHUNK = {
    "id": id_of("cmpl-"), "object": {"text_completion"}, "created": count, "model": str,
    "usage?": Any(NULL, USAGE), "timings?": TIMINGS, "metrics?": METRICS, "speculation?": SPECULATION,
    "choices": [{"index": count, "text": str, "logprobs": OLD_LOGPROBS,
                 "finish_reason": Any(NULL, {"stop", "length"})}],
}
MODEL = {"id": str, "object": {"model"}, "created": count, "owned_by": str, "max_model_len": count}
MODELS = {"object": {"list"}, "data": [MODEL]}
ERROR = {"error": {"message": str, "type": str, "param": Any(str, NULL), "code": Any(str, NULL)}}

A_USAGE = {"input_tokens": count, "output_tokens": count, "cache_creation_input_tokens": count,
           "cache_read_input_tokens": count}
A_BLOCK = Any({"type": {"text"}, "text": str}, {"type": {"thinking"}, "thinking": str, "signature": str},
              {"type": {"tool_use"}, "id": id_of("toolu_"), "name": str, "input": dict})
STOP_REASON = {"end_turn", "max_tokens", "stop_sequence", "tool_use"}
MESSAGE = {"id": id_of("msg_"), "type": {"message"}, "role": {"assistant"}, "model": str, "content": [A_BLOCK],
           "stop_reason": Any(NULL, STOP_REASON), "stop_sequence": Any(NULL, str), "usage": A_USAGE}
A_EVENTS = {
    "message_start": {"type": {"message_start"}, "message": MESSAGE},
    "content_block_start": {"type": {"content_block_start"}, "index": count, "content_block": A_BLOCK},
    "content_block_delta": {"type": {"content_block_delta"}, "index": count,
                            "delta": Any({"type": {"text_delta"}, "text": str},
                                         {"type": {"thinking_delta"}, "thinking": str},
                                         {"type": {"input_json_delta"}, "partial_json": str})},
    "content_block_stop": {"type": {"content_block_stop"}, "index": count},
    "message_delta": {"type": {"message_delta"}, "delta": {"stop_reason": STOP_REASON, "stop_sequence": Any(NULL, str)},
                      "usage": A_USAGE, **MEASURED},
    "message_stop": {"type": {"message_stop"}},
    "ping": {"type": {"ping"}},
}
A_ERROR = {"type": {"error"}, "error": ERROR["error"], "request_id": str}


def mismatch(value, shape, path="$"):
    """What does not fit, or None."""
    if isinstance(shape, Any):
        found = [mismatch(value, one, path) for one in shape.shapes]
        return None if None in found else " or ".join(found)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{path}: expected an object, found {value!r}"
        known = {key.rstrip("?"): one for key, one in shape.items()}
        for key in value:
            if key not in known:
                return f"{path}: has an unknown key {key}"
        for key, one in shape.items():
            name = key.rstrip("?")
            if name not in value:
                if key == name:
                    return f"{path}: lacks {key}"
                continue
            if found := mismatch(value[name], one, f"{path}.{name}"):
                return found
        return None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{path}: expected a list, found {value!r}"
        return next((found for i, one in enumerate(value) if (found := mismatch(one, shape[0], f"{path}[{i}]"))), None)
    if isinstance(shape, (set, frozenset)):
        return None if isinstance(value, str) and value in shape else f"{path}: expected one of {shape}, found {value!r}"
    if isinstance(shape, type):
        return None if isinstance(value, shape) else f"{path}: expected {shape.__name__}, found {value!r}"
    return None if shape(value) else f"{path}: {value!r} does not fit"


def check(value, shape):
    found = mismatch(value, shape)
    assert found is None, f"{found} in {value}"
    return value
