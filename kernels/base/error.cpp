#include "kernels/base/error.h"

namespace shoal {

void throw_bug(const char* file, int line, const char* condition, const std::string& detail) {
  throw Bug(fmt::format("{}:{}: check failed: {}{}{}", file, line, condition,
                        detail.empty() ? "" : ": ", detail));
}

}  // namespace shoal
