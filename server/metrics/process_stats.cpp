#include "server/metrics/process_stats.h"

#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace shoal {
namespace {

// Fields of /proc/self/stat behind the command's name, which may hold anything but a last ')'.
constexpr int kState = 3;  // the first of them, as proc(5) counts
constexpr int kUserTicks = 14, kSystemTicks = 15, kThreads = 20, kStartTicks = 22, kVirtualBytes = 23,
              kResidentPages = 24;

double boot_seconds() {
  std::ifstream file("/proc/stat");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("btime ")) return std::stod(line.substr(6));
  }
  return 0;
}

}  // namespace

ProcessStats process_stats() {
  ProcessStats stats;
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  std::istringstream fields(line.substr(line.rfind(')') + 1));
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  std::string field;
  for (int number = kState; fields >> field; ++number) {
    if (number == kUserTicks || number == kSystemTicks) stats.cpu_seconds += std::stod(field) / ticks;
    if (number == kThreads) stats.threads = std::stoll(field);
    if (number == kStartTicks) {
      static const double boot = boot_seconds();
      stats.start_seconds = boot + std::stod(field) / ticks;
    }
    if (number == kVirtualBytes) stats.virtual_bytes = std::stoull(field);
    if (number == kResidentPages) {
      stats.resident_bytes = std::stoull(field) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    }
  }
  std::error_code error;
  for (std::filesystem::directory_iterator it("/proc/self/fd", error), end; it != end;
       it.increment(error)) {
    ++stats.open_fds;
  }
  if (stats.open_fds > 0) --stats.open_fds;  // the folder itself
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) stats.max_fds = static_cast<int64_t>(limit.rlim_cur);
  return stats;
}

}  // namespace shoal
