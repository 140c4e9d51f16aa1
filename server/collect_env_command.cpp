#include "server/collect_env_command.h"

#include <fmt/format.h>
#include <google/protobuf/stubs/common.h>
#include <grpcpp/version_info.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <thread>

#include "runtime/backend.h"
#include "server/start_log.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

// What bears on a server: its own, the back ends' and launchers', and what the loader of programs
// reads.
constexpr const char* kRelevant[] = {
    "SHOAL_", "CUDA_", "NVIDIA_", "NCCL_",  "OMPI_",   "PMIX_", "PRTE_",  "UCX_",    "OMP_",
    "GRPC_",  "HF_",   "LWS_",    "SLURM_", "MALLOC_", "LD_",   "TMPDIR", "NOTIFY_", "WATCHDOG_"};
// A name with one of these is not for a bug report; nor are values of addresses with passwords in
// them.
constexpr const char* kSecret[] = {"KEY",        "TOKEN", "SECRET", "PASSW",
                                   "CREDENTIAL", "AUTH",  "COOKIE", "_URI"};

#ifdef __clang__
constexpr const char* kCompiler = __VERSION__;  // "Clang 16.0.6", but "12.2.0" of GCC
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// The value behind "NAME: " or "NAME=" in a file of such lines; "" without.
std::string field(const std::string& path, const std::string& name) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(name)) continue;
    const size_t at = line.find_first_not_of(" \t:=", name.size());
    std::string value = at == std::string::npos ? "" : line.substr(at);
    if (value.size() > 1 && value.front() == '"' && value.back() == '"')
      value = value.substr(1, value.size() - 2);
    return value;
  }
  return "";
}

std::vector<std::string> names_in(const std::string& folder, const std::string& prefix = "") {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; it != end; it.increment(error)) {
    if (it->path().filename().string().starts_with(prefix))
      names.push_back(it->path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Lines that a fixed command writes; none when it cannot be run.
std::vector<std::string> output_of(const char* command) {
  std::vector<std::string> lines;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(popen(command, "r"), &pclose);
  if (pipe == nullptr) return lines;
  std::string text;
  for (char buffer[4096]; size_t n = std::fread(buffer, 1, sizeof buffer, pipe.get());)
    text.append(buffer, n);
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

EnvSection build() {
  EnvSection s{"build", {}};
  s.entries = {{"version", SHOAL_VERSION},
               {"compiler", kCompiler},
               {"build type", SHOAL_BUILD_TYPE},
               {"flags", SHOAL_BUILD_FLAGS},
               {"gRPC", GRPC_CPP_VERSION_STRING},
               {"protobuf", google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION)}};
  std::istringstream lines(backend_summary());
  int number = 0;
  for (std::string line; std::getline(lines, line);)
    s.entries.emplace_back(fmt::format("back ends {}", ++number), line);
  if (number == 1) s.entries.back().first = "back ends";
  return s;
}

EnvSection system() {
  EnvSection s{"system", {}};
  utsname name{};
  uname(&name);
  s.entries = {
      {"system", field("/etc/os-release", "PRETTY_NAME")},
      {"kernel", fmt::format("{} {} {}", name.sysname, name.release, name.machine)},
      {"container", fs::exists("/.dockerenv") || fs::exists("/run/.containerenv") ? "yes" : "no"}};
  rlimit limit{};
  const auto text = [&](rlim_t value) {
    return value == RLIM_INFINITY ? std::string("unlimited") : std::to_string(value);
  };
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
    s.entries.emplace_back("open files at most", text(limit.rlim_cur));
  if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0)
    s.entries.emplace_back("locked memory at most, bytes", text(limit.rlim_cur));
  return s;
}

EnvSection cpu() {
  EnvSection s{"CPU", {}};
  const std::string info = "/proc/cpuinfo";
  const MachineInfo machine = machine_info();
  s.entries = {{"model", field(info, "model name")},
               {"cores", fmt::format("{}, {} of them for this process",
                                     std::thread::hardware_concurrency(), machine.cores)},
               {"cgroup cpu.max", first_line("/sys/fs/cgroup/cpu.max")}};
  // What decides which kernels run and how fast.
  const std::set<std::string> asked = {
      "sse4_2",   "avx",         "avx2",        "fma",         "f16c",      "avx512f",  "avx512bw",
      "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni",  "amx_bf16", "amx_int8",
      "amx_tile", "asimd",       "sve",         "bf16",        "hypervisor"};
  std::string flags = field(info, "flags");
  if (flags.empty()) flags = field(info, "Features");
  std::istringstream words(flags);
  std::string found;
  for (std::string word; words >> word;) {
    if (asked.count(word) > 0) found += (found.empty() ? "" : " ") + word;
  }
  s.entries.emplace_back("features", found);
  s.entries.emplace_back("governor",
                         first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"));
  for (const std::string& node : names_in("/sys/devices/system/node", "node")) {
    const std::string folder = "/sys/devices/system/node/" + node;
    s.entries.emplace_back(
        "NUMA " + node,
        fmt::format("cores {}, {}", first_line(folder + "/cpulist"),
                    field(folder + "/meminfo", fmt::format("Node {} MemTotal", node.substr(4)))));
  }
  return s;
}

EnvSection memory() {
  EnvSection s{"memory", {}};
  for (const char* name : {"MemTotal", "MemAvailable", "SwapTotal", "HugePages_Total",
                           "HugePages_Free", "Hugepagesize"}) {
    s.entries.emplace_back(name, field("/proc/meminfo", name));
  }
  s.entries.emplace_back("transparent huge pages",
                         first_line("/sys/kernel/mm/transparent_hugepage/enabled"));
  s.entries.emplace_back("cgroup memory.max", first_line("/sys/fs/cgroup/memory.max"));
  struct statvfs shm {};
  if (statvfs("/dev/shm", &shm) == 0) {
    s.entries.emplace_back("/dev/shm",
                           fmt::format("{} free of {}", bytes_text(shm.f_bavail * shm.f_frsize),
                                       bytes_text(shm.f_blocks * shm.f_frsize)));
  }
  return s;
}

EnvSection accelerators() {
  EnvSection s{"GPUs", {}};
  s.entries.emplace_back("usable by this build", std::to_string(gpu_count()));
  s.entries.emplace_back("driver", first_line("/proc/driver/nvidia/version"));
  int number = 0;
  for (const std::string& line :
       output_of("nvidia-smi --query-gpu=name,memory.total,driver_version,compute_cap,pci.bus_id "
                 "--format=csv,noheader 2>/dev/null")) {
    s.entries.emplace_back(fmt::format("GPU {}", number++), line);
  }
  return s;
}

EnvSection network() {
  EnvSection s{"network", {}};
  for (const std::string& name : names_in("/sys/class/net")) {
    const std::string folder = "/sys/class/net/" + name;
    const std::string speed = first_line(folder + "/speed");  // Mbit/s; -1 or nothing: unknown
    s.entries.emplace_back(
        name, fmt::format("{}{}, mtu {}", first_line(folder + "/operstate"),
                          speed.empty() || speed[0] == '-' ? "" : ", " + speed + " Mbit/s",
                          first_line(folder + "/mtu")));
  }
  for (const std::string& name : names_in("/sys/class/infiniband")) {
    s.entries.emplace_back(
        name, "InfiniBand, " + first_line("/sys/class/infiniband/" + name + "/ports/1/rate"));
  }
  const std::vector<std::string> launcher = output_of("mpirun --version 2>/dev/null");
  s.entries.emplace_back("mpirun", launcher.empty() ? "none" : launcher[0]);
  return s;
}

}  // namespace

EnvSection relevant_environment(const std::vector<std::string>& environment) {
  EnvSection s{"environment", {}};
  const auto relevant = [](const std::string& name) {
    for (const char* prefix : kRelevant) {
      if (name.starts_with(prefix)) return true;
    }
    return false;
  };
  const auto secret = [](std::string name) {
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return std::toupper(c); });
    for (const char* word : kSecret) {
      if (name.find(word) != std::string::npos) return true;
    }
    return false;
  };
  for (const std::string& entry : environment) {
    const size_t equals = std::min(entry.find('='), entry.size());
    const std::string name = entry.substr(0, equals);
    if (!relevant(name)) continue;
    s.entries.emplace_back(name,
                           secret(name) ? "***" : entry.substr(std::min(equals + 1, entry.size())));
  }
  std::sort(s.entries.begin(), s.entries.end());
  return s;
}

std::vector<EnvSection> collect_env() {
  std::vector<std::string> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  return {build(),
          system(),
          cpu(),
          memory(),
          accelerators(),
          network(),
          relevant_environment(environment)};
}

int run_collect_env(const CollectEnvOptions& options) {
  const std::vector<EnvSection> sections = collect_env();
  if (options.json) {
    nlohmann::ordered_json all;
    for (const EnvSection& section : sections) {
      nlohmann::ordered_json& entries = all[section.name] = nlohmann::ordered_json::object();
      for (const auto& [name, value] : section.entries) entries[name] = value;
    }
    fmt::print("{}\n", all.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
    return 0;
  }
  for (const EnvSection& section : sections) {
    fmt::print("{}\n", section.name);
    for (const auto& [name, value] : section.entries)
      fmt::print("  {}: {}\n", name, value.empty() ? "-" : value);
  }
  return 0;
}

}  // namespace shoal
