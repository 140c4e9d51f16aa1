// INVALID(expression, "part", ...): it throws InvalidInput, and the message holds each part.
#pragma once

#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "kernels/base/error.h"

#define INVALID(expression, ...)                                           \
  do {                                                                     \
    std::string message_;                                                  \
    try {                                                                  \
      (void)(expression);                                                  \
    } catch (const ::shoal::InvalidInput& error) {                         \
      message_ = error.what();                                             \
    }                                                                      \
    INFO(#expression);                                                     \
    REQUIRE(message_ != "");                                               \
    for (const std::string part : std::vector<std::string>{__VA_ARGS__}) { \
      CHECK_THAT(message_, Catch::Contains(part));                         \
    }                                                                      \
  } while (0)
