#include "server/chat_command.h"

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <thread>

#include "server/chat_client.h"
#include "server/signals.h"

namespace shoal {
namespace {

constexpr const char* kDim = "\033[2m";
constexpr const char* kPlain = "\033[0m";
constexpr const char* kClearLine = "\r\033[K";
constexpr const char* kPrompt = "> ";

// What the terminal shows of one answer.
class Printer {
 public:
  // Reasoning is for people: a pipe gets the answer only.
  Printer(bool terminal, bool reasoning) : reasoning_(reasoning && terminal) {}

  void show(const std::string& reasoning, const std::string& content) {
    if (!reasoning.empty() && reasoning_) {
      if (!dim_) std::fputs(kDim, stdout);
      dim_ = true;
      std::fputs(reasoning.c_str(), stdout);
    }
    if (!content.empty()) {
      if (dim_) fmt::print("{}\n\n", kPlain);
      dim_ = false;
      std::fputs(content.c_str(), stdout);
    }
    std::fflush(stdout);
  }

  void end() {
    if (dim_) std::fputs(kPlain, stdout);
    dim_ = false;
    std::fputs("\n", stdout);
    std::fflush(stdout);
  }

 private:
  const bool reasoning_;
  bool dim_ = false;
};

v1::SamplingParams sampling(const ChatOptions& o) {
  v1::SamplingParams params;
  if (o.temperature) params.set_temperature(*o.temperature);
  if (o.top_p) params.set_top_p(*o.top_p);
  if (o.top_k) params.set_top_k(*o.top_k);
  if (o.min_p) params.set_min_p(*o.min_p);
  if (o.repetition_penalty) params.set_repetition_penalty(*o.repetition_penalty);
  if (o.presence_penalty) params.set_presence_penalty(*o.presence_penalty);
  if (o.frequency_penalty) params.set_frequency_penalty(*o.frequency_penalty);
  if (o.max_tokens) params.set_max_tokens(*o.max_tokens);
  if (o.seed) params.set_seed(*o.seed);
  for (const std::string& stop : o.stop) params.add_stop(stop);
  return params;
}

void add_message(v1::ChatRequest* request, const std::string& role, const std::string& content) {
  v1::Message* message = request->add_messages();
  message->set_role(role);
  message->set_content(content);
}

v1::ChatRequest new_conversation(const ChatOptions& options) {
  v1::ChatRequest request;
  *request.mutable_sampling() = sampling(options);
  if (!options.system.empty()) add_message(&request, "system", options.system);
  return request;
}

void print_stats(const ChatAnswer& answer) {
  // Over the whole answer: the first message may bring several tokens, which would make a rate
  // counted from there too good.
  const int32_t tokens = answer.usage.completion_tokens();
  fmt::print(stderr, "[{} prompt tokens ({} cached), {} tokens, TTFT {:.3f} s, {:.1f} tokens/s]\n",
             answer.usage.prompt_tokens(), answer.usage.cached_tokens(), tokens,
             answer.first_token_seconds, tokens / answer.total_seconds);
}

// Asks the question that the request ends with, shows the answer and adds it to the conversation; a
// question that fails is taken out again.
bool ask(ChatClient* client, const ChatOptions& options, bool terminal, v1::ChatRequest* request) {
  Printer printer(terminal, options.reasoning);
  const ChatAnswer answer = client->ask(
      *request, options.timeout, [&](const std::string& reasoning, const std::string& content) {
        printer.show(reasoning, content);
      });
  printer.end();
  if (!answer.error.empty()) {
    fmt::print(stderr, "shoal: error: {}\n", answer.error);
    request->mutable_messages()->RemoveLast();
    return false;
  }
  if (answer.cancelled) fmt::print(stderr, "[stopped]\n");
  if (answer.finish_reason == v1::FINISH_REASON_LENGTH) {
    fmt::print(stderr, "[cut: --max-tokens or the context is reached]\n");
  }
  if (options.stats && !answer.cancelled) print_stats(answer);
  add_message(request, "assistant", answer.content);
  request->mutable_messages()->rbegin()->set_reasoning_content(answer.reasoning);
  return true;
}

// Ctrl-C stops the answer that is running; without one it only reminds how to leave.
class AnswerStopper {
 public:
  explicit AnswerStopper(ChatClient* client) : signals_({SIGINT}), client_(client) {
    thread_ = std::thread([this] { watch(); });
  }
  ~AnswerStopper() {
    ending_ = true;
    signals_.wake();
    thread_.join();
  }

 private:
  void watch() {
    int seen = 0;
    while (!ending_) {
      const int count = signals_.wait(std::chrono::hours(1));
      if (count == seen) continue;
      seen = count;
      if (!client_->cancel()) {
        fmt::print("\n(/quit or Ctrl-D to leave)\n{}", kPrompt);
        std::fflush(stdout);
      }
    }
  }

  StopSignals signals_;
  ChatClient* const client_;
  std::atomic<bool> ending_{false};
  std::thread thread_;
};

int run_session(ChatClient* client, const ChatOptions& options, const std::string& model) {
  fmt::print("{}: /reset starts anew, /quit leaves, Ctrl-C stops an answer\n", model);
  AnswerStopper stopper(client);
  v1::ChatRequest request = new_conversation(options);
  std::string line;
  while (true) {
    fmt::print("{}", kPrompt);
    std::fflush(stdout);
    if (!std::getline(std::cin, line)) {
      fmt::print("\n");
      return 0;
    }
    if (line.empty()) continue;
    if (line == "/quit" || line == "/exit") return 0;
    if (line == "/reset") {
      request = new_conversation(options);
      continue;
    }
    if (line[0] == '/') {
      fmt::print("unknown command {}; there are /reset and /quit\n", line);
      continue;
    }
    add_message(&request, "user", line);
    ask(client, options, true, &request);
  }
}

}  // namespace

int run_chat(const ChatOptions& options) {
  const bool stdin_terminal = isatty(STDIN_FILENO), stdout_terminal = isatty(STDOUT_FILENO);
  ChatClient client(options.address);
  bool waited = false;
  const v1::GetModelResponse model = client.connect([&](const std::string& detail) {
    const bool bar = isatty(STDERR_FILENO);
    fmt::print(stderr, "{}the model is loading: {}{}", bar ? kClearLine : "", detail,
               bar ? "" : "\n");
    waited = bar;
  });
  if (waited) fmt::print(stderr, "{}", kClearLine);

  std::string question;
  for (const std::string& word : options.message) question += (question.empty() ? "" : " ") + word;
  if (question.empty() && stdin_terminal) return run_session(&client, options, model.name());
  if (question.empty()) {
    question.assign(std::istreambuf_iterator<char>(std::cin), {});
    while (!question.empty() && question.back() == '\n') question.pop_back();
  }
  v1::ChatRequest request = new_conversation(options);
  add_message(&request, "user", question);
  return ask(&client, options, stdout_terminal, &request) ? 0 : 1;
}

}  // namespace shoal
