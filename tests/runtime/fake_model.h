// A model of a few lines that has a KV cache and believes nothing: the "KV" of a position is a hash
// of all tokens up to it, made from the page that holds the position before. A page that was given
// to two sequences, reused too early or found under the wrong prefix changes the output.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/base/error.h"
#include "runtime/engine/step_runner.h"
#include "runtime/scheduler/scheduler.h"

namespace shoal {

inline uint64_t fake_hash(uint64_t before, int32_t token) {
  uint64_t h = (before + static_cast<uint32_t>(token) + 1) * 0x9E3779B97F4A7C15u;
  h ^= h >> 29;
  h *= 0xBF58476D1CE4E5B9u;
  return h ^ (h >> 32);
}

// The token after a history whose last KV is `kv`.
inline int32_t fake_next(uint64_t kv, int32_t vocab) {
  return static_cast<int32_t>((kv >> 7) % static_cast<uint64_t>(vocab));
}

// What a request gives when it runs alone.
inline std::vector<int32_t> fake_serial(const Request& request, int32_t vocab,
                                        int32_t max_model_len, const std::vector<int32_t>& eos) {
  uint64_t kv = 0;
  for (int32_t token : request.tokens) kv = fake_hash(kv, token);
  std::vector<int32_t> out(request.tokens.begin() + request.prompt_len, request.tokens.end());
  const size_t prompt = static_cast<size_t>(request.prompt_len);
  for (;;) {
    out.push_back(fake_next(kv, vocab));
    kv = fake_hash(kv, out.back());
    bool ends = false;
    if (!request.sampling.ignore_eos) {
      for (int32_t id : eos) ends |= id == out.back();
    }
    for (int32_t id : request.sampling.stop_token_ids) ends |= id == out.back();
    if (ends || out.size() >= static_cast<size_t>(request.sampling.max_tokens) ||
        prompt + out.size() >= static_cast<size_t>(max_model_len)) {
      return out;
    }
  }
}

class FakeModel : public StepRunner {
 public:
  FakeModel(const SchedulerConfig& config, int32_t vocab)
      : config_(config),
        vocab_(vocab),
        kv_(static_cast<size_t>(config.num_pools) * config.num_pages * config.page_size),
        host_(static_cast<size_t>(config.num_pools) * config.tiers.host_pages * config.page_size) {}

  // The work on pages of a plan, before choose() of the same. Loads end at once, and are told
  // later.
  void move_pages(const StepPlan& plan) override {
    for (const PageFile& f : plan.files) {
      if (f.kind == PageFile::Kind::kSave)
        (*files)[{f.dp_rank, f.key}] = host_page(f.dp_rank, f.slot);
    }
    for (const PageCopy& c : plan.copies) {
      SHOAL_CHECK(c.page >= 0 && c.page < config_.num_pages, "page {}", c.page);
      const int64_t first = (int64_t{c.dp_rank} * config_.num_pages + c.page) * config_.page_size;
      const auto device = kv_.begin() + first;
      const auto host = host_.begin() + host_at(c.dp_rank, c.slot);
      if (c.to_host) {
        std::copy_n(device, config_.page_size, host);
      } else {
        std::copy_n(host, config_.page_size, device);
      }
      ++copies;
    }
    for (const PageFile& f : plan.files) {
      if (f.kind == PageFile::Kind::kDrop) {
        files->erase({f.dp_rank, f.key});
      } else if (f.kind == PageFile::Kind::kLoad) {
        const auto [load, fresh] = loads_.try_emplace(f.ticket, Load{0, loads_delay, false});
        const auto file = files->find({f.dp_rank, f.key});
        if (file == files->end()) load->second.broken = true;
        if (load->second.broken) continue;
        ++load->second.pages;
        std::copy(file->second.begin(), file->second.end(),
                  host_.begin() + host_at(f.dp_rank, f.slot));
      }
    }
  }
  int64_t loaded(uint64_t ticket) override {
    const auto load = loads_.find(ticket);
    if (load == loads_.end() || load->second.delay-- > 0) return -1;
    return load->second.pages;
  }

  // By pool and key: what survives this model. Another one may have the same.
  using Files = std::map<std::pair<int32_t, PageKey>, std::vector<uint64_t>>;
  std::shared_ptr<Files> files = std::make_shared<Files>();
  int loads_delay = 0;  // times that loaded() says -1
  int64_t copies = 0;

  // Checks the plan and returns the token of each sampled slice.
  std::vector<int32_t> choose(const StepPlan& plan) {
    check(plan);
    const std::vector<int32_t> before = std::exchange(samples_, {});
    std::vector<int32_t>& chosen = samples_;
    for (const SequenceSlice& s : plan.slices) {
      uint64_t kv = s.first_position == 0 ? 0 : slot(s, s.first_position - 1);
      for (size_t i = 0; i < s.tokens.size(); ++i) {
        const int32_t token =
            s.from_sample < 0 ? s.tokens[i] : before.at(static_cast<size_t>(s.from_sample));
        kv = fake_hash(kv, token);
        slot(s, s.first_position + static_cast<int32_t>(i)) = kv;
      }
      if (s.sample) chosen.push_back(fake_next(kv, vocab_));
    }
    return chosen;
  }

  // What the last step's slices were given in place of its own choices.
  void sampled(std::vector<int32_t> tokens) { samples_ = std::move(tokens); }

  // Logits whose largest is the chosen token's.
  std::span<const float> run(const StepPlan& plan) override {
    const std::vector<int32_t> chosen = choose(plan);
    logits_.assign(chosen.size() * static_cast<size_t>(vocab_), 0.0f);
    for (size_t i = 0; i < chosen.size(); ++i) {
      logits_[i * static_cast<size_t>(vocab_) + static_cast<size_t>(chosen[i])] = 10.0f;
    }
    return logits_;
  }

 private:
  struct Load {
    int64_t pages;
    int delay;
    bool broken;
  };
  int64_t host_at(int32_t pool, int32_t slot) const {
    SHOAL_CHECK(slot >= 0 && slot < config_.tiers.host_pages, "slot {}", slot);
    return (int64_t{pool} * config_.tiers.host_pages + slot) * config_.page_size;
  }
  std::vector<uint64_t> host_page(int32_t pool, int32_t slot) const {
    const auto begin = host_.begin() + host_at(pool, slot);
    return {begin, begin + config_.page_size};
  }
  uint64_t& slot(const SequenceSlice& s, int32_t position) {
    const int32_t page = s.pages.at(static_cast<size_t>(position / config_.page_size));
    const int64_t row = (int64_t{s.dp_rank} * config_.num_pages + page) * config_.page_size;
    return kv_.at(static_cast<size_t>(row + position % config_.page_size));
  }

  void check(const StepPlan& plan) const {
    SHOAL_CHECK(plan.num_tokens() <= config_.max_num_batched_tokens, "{} tokens",
                plan.num_tokens());
    SHOAL_CHECK(static_cast<int32_t>(plan.slices.size()) <= config_.max_num_seqs);
    std::map<std::pair<int32_t, int32_t>, int> holders;  // of (pool, page)
    std::set<RequestId> seen;
    for (size_t i = 0; i < plan.slices.size(); ++i) {
      const SequenceSlice& s = plan.slices[i];
      SHOAL_CHECK(seen.insert(s.request).second, "two slices of request {}", s.request);
      if (i > 0) {
        const SequenceSlice& before = plan.slices[i - 1];
        SHOAL_CHECK(
            std::pair(before.dp_rank, !before.absorbed) <= std::pair(s.dp_rank, !s.absorbed),
            "order of slices");
      }
      for (int32_t page : std::set<int32_t>(s.pages.begin(), s.pages.end())) {
        SHOAL_CHECK(page >= 0 && page < config_.num_pages, "page {}", page);
        ++holders[{s.dp_rank, page}];
      }
    }
    for (const SequenceSlice& s : plan.slices) {
      const size_t end = static_cast<size_t>(s.first_position) + s.tokens.size();
      SHOAL_CHECK(s.pages.size() * static_cast<size_t>(config_.page_size) >= end, "too few pages");
      for (size_t i = static_cast<size_t>(s.first_position / config_.page_size); i < s.pages.size();
           ++i) {
        const int holding = holders.at({s.dp_rank, s.pages[i]});
        SHOAL_CHECK(holding == 1, "page {} is written by one and held by {}", s.pages[i], holding);
      }
    }
  }

  SchedulerConfig config_;
  int32_t vocab_;
  std::vector<uint64_t> kv_;    // [num_pools, num_pages, page_size]
  std::vector<uint64_t> host_;  // [num_pools, host_pages, page_size]
  std::map<uint64_t, Load> loads_;
  std::vector<int32_t> samples_;  // of the last step
  std::vector<float> logits_;
};

}  // namespace shoal
