// Questions to the server. Every call gives what came or throws an ApiError whose message can be shown to a person.

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function hideToken() {
  // A token in the address has become a cookie; links to a view must not carry it along.
  const url = new URL(location.href);
  if (!url.searchParams.has('token')) return;
  url.searchParams.delete('token');
  history.replaceState(null, '', url);
}

export class Api {
  constructor(base = new URL('api/v1/', document.baseURI)) {
    this.base = base;
    hideToken();
  }

  /** Address of a resource; query values that are null or undefined are left out. */
  url(path, query = {}) {
    const url = new URL(path, this.base);
    for (const [key, value] of Object.entries(query)) {
      if (value !== null && value !== undefined) url.searchParams.set(key, value);
    }
    return url;
  }

  async fetch(path, { query, signal, method = 'GET', body } = {}) {
    const content = body === undefined ? {} : { body: JSON.stringify(body), headers: { 'Content-Type': 'application/json' } };
    let answer;
    try {
      answer = await fetch(this.url(path, query), { method, signal, ...content });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new ApiError('the server does not answer', 0);
    }
    if (!answer.ok) throw new ApiError(await reasonOf(answer), answer.status);
    return answer;
  }

  async json(path, options) {
    return (await this.fetch(path, options)).json();
  }
}

async function reasonOf(answer) {
  try {
    const { detail } = await answer.json();
    if (typeof detail === 'string') return detail;
  } catch {
    // Not JSON: the status has to do.
  }
  return `the server answered ${answer.status} ${answer.statusText}`;
}
