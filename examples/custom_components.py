#!/usr/bin/env python3
"""One's own module, agent and env, registered and trained for three steps. `--import examples/custom_components.py` makes
them known to every command: memfactory train --import examples/custom_components.py --agent_type appender --env_type thrifty ..."""

import shutil

from memfactory import AGENT_REGISTRY, ENV_REGISTRY, MODULE_REGISTRY, BaseAgent, BaseModule, LongcontextEnv, MemTrainer, TrainConfig
from memfactory.common.prompts import NO_MEMORY, memory_answer_messages, memory_update_messages


@MODULE_REGISTRY.register("append_module")
class AppendModule(BaseModule):
    """Write notes on each section beside the old ones: a memory that only grows."""

    async def act(self, model, question, memory, section=None):
        if section is None:
            return (await model.chat(memory_answer_messages(question, memory or NO_MEMORY), stage="answer", max_tokens=24)).text
        notes = (await model.chat(memory_update_messages(question, NO_MEMORY, section), stage="memory", max_tokens=24)).text
        return memory if NO_MEMORY in notes else f"{memory} {notes}".strip()


@AGENT_REGISTRY.register("appender")
class Appender(BaseAgent):
    """Read in chunks of four facts, append, answer from the notes."""

    slots = {"notes": "append_module"}
    stages = ("memory", "answer")
    question_aware = True

    def initial(self, view):
        return ""

    def events(self, view):
        return self.chunks(view.context)

    async def write(self, model, memory, event, question=None):
        return await self.notes.generate(model, question, memory, event)

    async def read(self, model, memory, question):
        return await self.notes.rollout(model, question, memory)


@ENV_REGISTRY.register("thrifty")
class ThriftyEnv(LongcontextEnv):
    """Pay for the right answer, less a little for every word remembered."""

    def compute_reward(self, predictions, ground_truths, num_generations, **kwargs):
        rewards = super().compute_reward(predictions, ground_truths, num_generations)
        for number, trajectory in enumerate(kwargs["trajectories"]):
            rewards["default"][number] -= 0.005 * len(str(trajectory.memory).split())
        return rewards


if __name__ == "__main__":
    shutil.rmtree("output/custom", ignore_errors=True)  # an example starts afresh
    MemTrainer(TrainConfig(
        model_name_or_path="models/tiny", data_path="datas/tiny/train.json", output_dir="output/custom", agent_type="appender",
        env_type="thrifty", batch_size=8, chunk_size=16, lr=4e-4, max_steps=3, device="cpu",
    )).train()  # fmt: skip
