#include "runtime/checkpoint/strict_json.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <set>
#include <vector>

#include "kernels/base/error.h"

namespace shoal {

nlohmann::json parse_strict_json(std::string_view text, const std::string& source) {
  using Json = nlohmann::json;
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxConfigDepth) {
      throw_invalid("{}: JSON nested deeper than {} levels", source, kMaxConfigDepth);
    }
    switch (event) {
      case Json::parse_event_t::object_start:
        keys.emplace_back();
        break;
      case Json::parse_event_t::object_end:
        keys.pop_back();
        break;
      case Json::parse_event_t::key:
        if (!keys.back().insert(parsed.get<std::string>()).second) {
          throw_invalid("{}: the key {} appears twice in one object", source,
                        in_quotes(parsed.get<std::string>()));
        }
        break;
      default:
        break;
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), check);
  } catch (const Json::parse_error& error) {
    throw_invalid("{}: not valid JSON near byte {}", source, error.byte);
  } catch (const Json::exception&) {
    throw_invalid("{}: JSON with a number that does not fit a double", source);
  }
}

std::string read_small_file(const std::string& path, uint64_t max_bytes) {
  struct Descriptor {
    int fd;
    ~Descriptor() {
      if (fd >= 0) close(fd);
    }
  };
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const Descriptor file{open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  struct stat status {};
  if (file.fd < 0 || fstat(file.fd, &status) != 0) {
    throw_invalid("{}: {}", path, std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) throw_invalid("{}: not a regular file", path);
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > max_bytes) {
    throw_invalid("{}: {} bytes, more than the {} that such a file may have", path, size,
                  max_bytes);
  }
  std::string text(size, '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n =
        pread(file.fd, text.data() + done, text.size() - done, static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_invalid("{}: {}", path, std::strerror(errno));
    if (n == 0) throw_invalid("{}: shrank while it was read", path);
    done += static_cast<size_t>(n);
  }
  return text;
}

bool path_exists(const std::string& path) {
  struct stat status {};
  return lstat(path.c_str(), &status) == 0;
}

std::string in_quotes(std::string_view text) {
  constexpr size_t kMaxShown = 120;
  std::string out = "\"";
  for (const char c : text.substr(0, kMaxShown)) {
    if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') {
      out += c;
    } else {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  return out + (text.size() > kMaxShown ? "...\"" : "\"");
}

}  // namespace shoal
