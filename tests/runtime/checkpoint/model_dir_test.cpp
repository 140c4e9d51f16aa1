#include "runtime/checkpoint/model_dir.h"

#include <cstdlib>
#include <optional>

#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"

namespace shoal {
namespace {

// Sets a variable, or unsets it, until the end of the scope.
class Variable {
 public:
  Variable(const char* name, const std::optional<std::string>& value) : name_(name) {
    if (const char* old = std::getenv(name)) old_ = old;
    set(value);
  }
  ~Variable() { set(old_); }

 private:
  void set(const std::optional<std::string>& value) {
    if (value) {
      setenv(name_, value->c_str(), 1);
    } else {
      unsetenv(name_);
    }
  }
  const char* name_;
  std::optional<std::string> old_;
};

const std::string kCommit = "0123456789abcdef0123456789abcdef01234567";

void add_model(const test::TempDir& dir, const std::string& hub) {
  const std::string model = hub + "/models--deepseek-ai--DeepSeek-V2-Lite/";
  dir.write(model + "refs/main", kCommit);
  dir.write(model + "refs/pr/1", kCommit + "\n");
  dir.write(model + "refs/broken", "../../../..");
  dir.write(model + "refs/gone", std::string(40, 'f'));
  dir.write(model + "snapshots/" + kCommit + "/config.json", "{}");
}

TEST_CASE("org/name resolves in the cache that the environment names") {
  const test::TempDir dir;
  add_model(dir, "hub");
  add_model(dir, "home/hub");
  add_model(dir, "user/.cache/huggingface/hub");
  const std::string model = "deepseek-ai/DeepSeek-V2-Lite";
  const std::string rest = "/models--deepseek-ai--DeepSeek-V2-Lite/snapshots/" + kCommit;
  const Variable user("HOME", dir.path("user"));
  {
    const Variable hub("HF_HUB_CACHE", dir.path("hub")), home("HF_HOME", dir.path("home"));
    CHECK(resolve_model_dir(model) == dir.path("hub") + rest);
    CHECK(resolve_model_dir(model, "main") == dir.path("hub") + rest);
    CHECK(resolve_model_dir(model, "pr/1") == dir.path("hub") + rest);
    CHECK(resolve_model_dir(model, kCommit) == dir.path("hub") + rest);
  }
  const Variable no_hub("HF_HUB_CACHE", std::nullopt);
  {
    const Variable home("HF_HOME", dir.path("home"));
    CHECK(resolve_model_dir(model) == dir.path("home/hub") + rest);
  }
  const Variable no_home("HF_HOME", std::nullopt);
  CHECK(resolve_model_dir(model) == dir.path("user/.cache/huggingface/hub") + rest);
}

TEST_CASE("a path that exists is taken as it is") {
  const test::TempDir dir;
  dir.write("m/config.json", "{}");
  CHECK(resolve_model_dir(dir.path("m")) == dir.path("m"));
}

TEST_CASE("what is not found says where it was searched") {
  const test::TempDir dir;
  add_model(dir, "hub");
  const Variable hub("HF_HUB_CACHE", dir.path("hub"));
  INVALID(resolve_model_dir(""), "folder or org/name");
  INVALID(resolve_model_dir("/no/such/dir"), "no such folder");
  INVALID(resolve_model_dir("nothing"), "no such folder", "org/name");
  INVALID(resolve_model_dir("org/.."), "no such folder");
  INVALID(resolve_model_dir("../hub/x"), "no such folder");
  INVALID(resolve_model_dir("org/other"), dir.path("hub/models--org--other"), "HF_HUB_CACHE",
          "give a folder");
  const std::string model = "deepseek-ai/DeepSeek-V2-Lite";
  INVALID(resolve_model_dir(model, "v2"), "\"v2\"", "refs/v2");
  INVALID(resolve_model_dir(model, "../main"), "not a branch");
  INVALID(resolve_model_dir(model, "broken"), "refs/broken", "should be a commit");
  INVALID(resolve_model_dir(model, "gone"), "snapshots/" + std::string(40, 'f'));
  INVALID(resolve_model_dir(model, std::string(40, 'e')), "snapshots/" + std::string(40, 'e'));
}

}  // namespace
}  // namespace shoal
