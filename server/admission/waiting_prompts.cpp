#include "server/admission/waiting_prompts.h"

namespace shoal {

WaitingPrompts::Ahead WaitingPrompts::ahead_of(int32_t priority, uint64_t client) const {
  Ahead ahead;
  const auto count = [&](const Queue& queue) {
    ahead.sequences += queue.sequences;
    if (!queue.prompts.empty()) ahead.tokens += queue.tokens - queue.prompts.begin()->second;
  };
  for (const auto& [level, clients] : queues_) {
    if (level > priority) break;
    for (const auto& [id, queue] : clients) {
      if (level < priority || id == client) count(queue);
    }
  }
  return ahead;
}

void WaitingPrompts::add(int32_t priority, uint64_t client, uint64_t number, int64_t tokens,
                         int64_t sequences) {
  Queue& queue = queues_[priority][client];
  queue.prompts.emplace(number, tokens);
  queue.tokens += tokens;
  queue.sequences += sequences;
}

void WaitingPrompts::sequence_left(int32_t priority, uint64_t client) {
  --queues_.at(priority).at(client).sequences;
  drop_if_empty(priority, client);
}

void WaitingPrompts::prompt_done(int32_t priority, uint64_t client, uint64_t number) {
  Queue& queue = queues_.at(priority).at(client);
  const auto prompt = queue.prompts.find(number);
  if (prompt == queue.prompts.end()) return;
  queue.tokens -= prompt->second;
  queue.prompts.erase(prompt);
}

void WaitingPrompts::drop_if_empty(int32_t priority, uint64_t client) {
  auto& clients = queues_.at(priority);
  if (clients.at(client).sequences > 0) return;
  clients.erase(client);
  if (clients.empty()) queues_.erase(priority);
}

}  // namespace shoal
