"""Examines an exported checkpoint: greedy answers to questions.jsonl, MTP acceptance, agreement with transformers.

The FP8 weights are expanded to float32 and run by Hugging Face's DeepseekV3ForCausalLM, so the figures are
the reference implementation's. The MTP layer is run by model.py, one forward pass over each answer.

    evaluate.py --model deploy/demo-model [--questions FILE] [--report FILE]
"""

import argparse
import json
import os
import re
import tempfile
from collections import Counter

import torch
import transformers
from transformers import AutoTokenizer, DeepseekV3ForCausalLM

from export import export_dequantised, load_model

MAX_NEW_TOKENS = 160
HERE = os.path.dirname(os.path.abspath(__file__))


def is_right(question, text):
    """number: the last integer of the content; text: the expected as whole words in it; exact: all of it."""
    content = text.split("</think>")[-1]
    if question["check"] == "number":
        numbers = re.findall(r"-?\d+", content.replace(" - ", " "))
        return bool(numbers) and numbers[-1] == question["expected"]
    if question["check"] == "exact":
        return content.strip() == question["expected"]
    return re.search(rf"(?<!\w){re.escape(question['expected'])}(?!\w)", content) is not None


@torch.no_grad()
def answer_all(model, tokenizer, questions, batch=50):
    """Greedy answers, in batches of about equal length. Returns [(prompt ids, generated ids), ...]."""
    prompts = [
        tokenizer(tokenizer.apply_chat_template(q["messages"], tokenize=False, add_generation_prompt=True),
                  add_special_tokens=False)["input_ids"]
        for q in questions
    ]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [None] * len(prompts)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        length = max(len(prompts[i]) for i in chosen)
        ids = torch.tensor([[1] * (length - len(prompts[i])) + prompts[i] for i in chosen])
        mask = torch.tensor([[0] * (length - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen])
        output = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=MAX_NEW_TOKENS,
                                eos_token_id=1, pad_token_id=2)
        for i, row in zip(chosen, output[:, length:].tolist()):
            answers[i] = (prompts[i], row[: row.index(1) + 1] if 1 in row else row)
    return answers


@torch.no_grad()
def compare(reference, ours, answers, count=20):
    """Largest difference of logits between transformers and model.py, and the largest logit."""
    worst = largest = 0.0
    for prompt, generated in answers[:count]:
        ids = torch.tensor(prompt + generated)
        a = reference(ids[None]).logits[0]
        b = ours.lm_head(ours.hidden(ids, [(1, len(ids))]))
        worst, largest = max(worst, float((a - b).abs().max())), max(largest, float(a.abs().max()))
    return worst, largest


@torch.no_grad()
def mtp_acceptance(ours, answers):
    """Share of generated tokens, from the second on, that the MTP layer proposed one step ahead."""
    right = total = 0
    for prompt, generated in answers:
        ids = torch.tensor(prompt + generated)
        shapes = [(1, len(ids))]
        hidden = ours.hidden(ids, shapes)
        later = ours.mtp_hidden(hidden, torch.cat([ids[1:], ids[-1:]]), shapes)
        drafts = ours.lm_head(later).argmax(-1)
        first = len(prompt) - 1  # this state chose the first generated token and drafts the second
        right += int((drafts[first:-2] == ids[first + 2 :]).sum())
        total += len(ids) - first - 2
    return right / total


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--questions", default=os.path.join(HERE, "questions.jsonl"))
    parser.add_argument("--report", help="write every answer to this JSON-lines file")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()

    with open(args.questions, encoding="utf-8") as file:
        questions = [json.loads(line) for line in file]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    with tempfile.TemporaryDirectory() as folder:
        export_dequantised(args.model, folder)
        reference = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_model(args.model)

    answers = answer_all(reference, tokenizer, questions)
    texts = [tokenizer.decode(generated[:-1] if generated[-1] == 1 else generated) for _, generated in answers]
    right, count = Counter(), Counter()
    report = open(args.report, "w", encoding="utf-8") if args.report else None
    for question, text in zip(questions, texts):
        good = is_right(question, text)
        half = " sums" if question["check"] == "number" else " names"
        keys = {question["split"], f"{question['split']}/{question['topic']}"}
        if question["split"] != "trained":
            keys.add(question["split"] + half)
        for key in keys:
            right[key] += good
            count[key] += 1
        if report:
            report.write(json.dumps(question | {"answer": text, "right": good}, ensure_ascii=False) + "\n")
    for key in sorted(count):
        print(f"{key:28} {right[key]:4} of {count[key]:4}  {right[key] / count[key]:7.1%}")
    print(f"MTP acceptance (greedy)      {mtp_acceptance(ours, answers):.1%}")
    worst, largest = compare(reference, ours, answers)
    print(f"transformers against model.py: largest difference {worst:.2e}, largest logit {largest:.2f}")


if __name__ == "__main__":
    main()
