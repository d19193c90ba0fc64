"""The models that ship with Penstock are what their cards say, for transformers and for us."""

from pathlib import Path
from typing import Any

import pytest
import torch

from penstock_engine.api import EngineRequest, Sampling, TokenOut
from penstock_engine.native.engine import NativeEngine
from penstock_engine.native.settings import NativeSettings
from penstock_models import DEMO, DEMO_DRAFT
from penstock_text.chat import ChatTemplate
from penstock_text.tokenizer import Tokenizer

# transformers warns about its own future; that is none of our business here.
pytestmark = pytest.mark.filterwarnings("ignore")

CODE = 'def load(path):\n    """Read a file."""\n    with open(path, encoding="utf-8") as file:\n'
MODELS = {"demo": (DEMO, 16_000_000), "draft": (DEMO_DRAFT, 3_000_000)}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    return MODELS[request.param][0]


def transformers_logprobs(model: Path, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities ``(len(tokens), vocab)`` of what follows each prefix."""
    from transformers import AutoModelForCausalLM

    reference: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        logits: torch.Tensor = reference(torch.tensor([tokens])).logits[0]
    return logits.log_softmax(-1)


# The last place of a bfloat16 is a 256th: of log-probabilities around 10, a 25th.
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-3), ("bfloat16", 0.04)])
async def test_logits_are_those_of_transformers(model: Path, dtype: str, tolerance: float) -> None:
    prompt = Tokenizer.load(model).encode(CODE)
    engine = NativeEngine(NativeSettings(model=model, dtype=dtype, kv_blocks=32, threads=1))
    await engine.start()
    wanted = EngineRequest("r", prompt, 24, Sampling(temperature=0.0), logprobs=20)

    outs = [out async for out in engine.generate(wanted) if isinstance(out, TokenOut)]
    await engine.close()

    logprobs = [logprob for out in outs for logprob in out.logprobs]
    tokens = [logprob.token_id for logprob in logprobs]
    assert len(tokens) == 24
    expected = transformers_logprobs(model, prompt + tokens)[len(prompt) - 1 :]
    for logprob, row in zip(logprobs, expected, strict=False):
        ids = [token for token, _ in logprob.top]
        ours = torch.tensor([value for _, value in logprob.top])
        torch.testing.assert_close(ours, row[ids], atol=tolerance, rtol=0)
        assert len(ids) == 20


def test_the_tokenizer_is_the_one_transformers_loads(model: Path) -> None:
    from transformers import AutoTokenizer

    theirs: Any = AutoTokenizer.from_pretrained(model)
    ours = Tokenizer.load(model)
    text = CODE + "\tπ = 3.14159  # naïve\r\n" + " " * 37 + "x"
    messages = [{"role": "user", "content": "open a file\nand count"}]

    assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.decode(ours.encode(text)) == text
    template = ChatTemplate.load(model)
    assert template is not None
    assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "# open a file\n# and count\n"
    )


def test_draft_and_model_share_their_tokenizer() -> None:
    assert Tokenizer.load(DEMO).digest == Tokenizer.load(DEMO_DRAFT).digest


@pytest.mark.parametrize(("path", "limit"), MODELS.values(), ids=MODELS)
def test_weights_are_small_and_only_safetensors(path: Path, limit: int) -> None:
    weights = [p for p in path.iterdir() if p.suffix not in (".json", ".md", ".jinja")]

    assert [p.name for p in weights] == ["model.safetensors"]
    assert weights[0].stat().st_size <= limit


def test_the_model_has_learned_to_write_python() -> None:
    """A floor far above chance: the next token of plain code is rarely a surprise."""
    tokens = Tokenizer.load(DEMO).encode(CODE * 2)

    logprobs = transformers_logprobs(DEMO, tokens)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])

    assert logprobs.mean().item() > -2.5
