// Requests whose prompts are numbers in a row: prompts with the same first token begin alike.
#pragma once

#include <numeric>

#include "runtime/request/request.h"

namespace shoal {

inline Request make_request(RequestId id, int32_t prompt_len, int32_t max_tokens, int32_t first_token = 0) {
  Request request;
  request.id = id;
  request.tokens.resize(static_cast<size_t>(prompt_len));
  std::iota(request.tokens.begin(), request.tokens.end(), first_token);
  request.prompt_len = prompt_len;
  request.sampling.max_tokens = max_tokens;
  return request;
}

}  // namespace shoal
