#include "server/tracing/trace_context.h"

#include <algorithm>
#include <random>

namespace shoal {
namespace {

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool all_zero(std::string_view text) {
  return text.find_first_not_of('0') == std::string_view::npos;
}

int digit(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

}  // namespace

std::optional<TraceContext> parse_traceparent(std::string_view text) {
  // version "-" trace-id "-" parent-id "-" flags, and from version 01 on perhaps "-" and more.
  constexpr size_t kLength = 2 + 1 + 32 + 1 + 16 + 1 + 2;
  if (text.size() < kLength || text[2] != '-' || text[35] != '-' || text[52] != '-') return {};
  const std::string_view version = text.substr(0, 2), trace = text.substr(3, 32),
                         parent = text.substr(36, 16), flags = text.substr(53, 2);
  if (!is_hex(version) || !is_hex(trace) || !is_hex(parent) || !is_hex(flags)) return {};
  if (version == "ff" || all_zero(trace) || all_zero(parent)) return {};
  if (text.size() > kLength && (version == "00" || text[kLength] != '-')) return {};
  return TraceContext{std::string(trace), std::string(parent), (digit(flags[1]) & 1) != 0};
}

std::string random_hex(int digits) {
  // Ids are no secrets: they have to differ, also between servers that started at the same moment.
  thread_local std::mt19937_64 random = [] {
    std::random_device device;
    std::seed_seq seed{device(), device(), device(), device()};
    return std::mt19937_64(seed);
  }();
  std::string text;
  do {
    text.clear();
    for (uint64_t bits = 0; static_cast<int>(text.size()) < digits; bits >>= 4) {
      if (text.size() % 16 == 0) bits = random();
      text += "0123456789abcdef"[bits & 15];
    }
  } while (all_zero(text));
  return text;
}

}  // namespace shoal
