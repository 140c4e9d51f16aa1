// The three classes of failure, decided where they are caught (server: a gRPC status or an exit code).
//   InvalidInput  what came from outside (flag, file, request) is wrong. The message names what was
//                 wrong, the value, and what would be right; it is shown to the user as it is.
//   DeviceFault   a device, a collective or a peer failed. All ranks stop; the front end restarts them.
//   Bug           a check of our own tripped. Treated as a DeviceFault.
// Thread-safe. Nothing but main() turns one of these into an exit.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace shoal {

class InvalidInput : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class DeviceFault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Bug : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

template <typename... Args>
[[noreturn]] void throw_invalid(fmt::format_string<Args...> format, Args&&... args) {
  throw InvalidInput(fmt::format(format, std::forward<Args>(args)...));
}

[[noreturn]] void throw_bug(const char* file, int line, const char* condition,
                            const std::string& detail);

}  // namespace shoal

// SHOAL_CHECK(condition, "format {}", args...): an invariant of our own code, never a check of input.
#define SHOAL_CHECK(condition, ...)                                                        \
  do {                                                                                     \
    if (!(condition)) [[unlikely]]                                                         \
      ::shoal::throw_bug(__FILE__, __LINE__, #condition, fmt::format("" __VA_ARGS__));     \
  } while (0)
